"""safetensors files, written a few rows at a time, so that a run that was stopped at any time goes on where it was.

Source: the order of tensors is that of `save_file` of huggingface/safetensors.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
from torch import Tensor

from .safetensors_file import DTYPES, LENGTH_BYTES, METADATA, NAMES, TensorType

RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
ALIGNMENT = 8  # bytes
WRITTEN_METADATA = {"format": "pt"}
SYNC_BYTES = 64 << 20
"""What a stopped run wrote since the last sync is written again by the next."""


class Target(Protocol):
    """Some tensors of a file that are made together."""

    @property
    def tensors(self) -> Mapping[str, TensorType]:
        """What they are."""

    def chunks(self) -> Iterator[tuple[str, Tensor]]:
        """Their numbers: for each tensor all its rows in order, some at a time, the same at every call."""


class Plan(NamedTuple):
    """A file to be written."""

    targets: Sequence[Target]
    identity: str
    """Words that change with anything the numbers come from: a stopped run goes on only with the same."""

    @property
    def tensors(self) -> dict[str, TensorType]:
        """All tensors of the file."""
        return {name: kind for target in self.targets for name, kind in target.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        header, _ = encode_header(self.tensors)
        return len(header) + sum(kind.nbytes for kind in self.tensors.values())


def encode_header(tensors: Mapping[str, TensorType]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file with these tensors, and where in the file each begins."""
    ordered = sorted(tensors.items(), key=lambda entry: (-RANKS[entry[1].dtype], entry[0]))
    header: dict[str, Any] = {METADATA: WRITTEN_METADATA}
    end = 0
    for name, kind in ordered:
        start, end = end, end + kind.nbytes
        header[name] = {"dtype": NAMES[kind.dtype], "shape": kind.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    begin = LENGTH_BYTES + len(text)
    positions = {name: begin + header[name]["data_offsets"][0] for name in tensors}
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, positions


def part_of(path: Path) -> Path:
    """Where a file is until it is complete."""
    return path.with_name(f"{path.name}.part")


def journal_of(path: Path) -> Path:
    """Where it is noted how much of a file is written: a line for the plan, then a dot for each target."""
    return path.with_name(f"{path.name}.part.journal")


def is_finished(path: Path, plan: Plan) -> bool:
    """Whether an earlier run that has not called `forget` has written the file."""
    if part_of(path).exists() or not path.is_file():
        return False
    return _num_noted(path, plan) == len(plan.targets) and path.stat().st_size == plan.nbytes


def bytes_done(path: Path, plan: Plan) -> int:
    """How much of the plan's data an earlier run has left in the `.part` file."""
    return sum(kind.nbytes for target in plan.targets[: _num_done(path, plan)] for kind in target.tensors.values())


def _num_done(path: Path, plan: Plan) -> int:
    return _num_noted(path, plan) if part_of(path).is_file() else 0


def _num_noted(path: Path, plan: Plan) -> int:
    """How many of the plan's targets the journal says are written; 0 if it is of another plan."""
    journal, title = journal_of(path), _title(plan)
    noted = journal.read_bytes() if journal.is_file() else b""
    return len(noted) - len(title) if noted.startswith(title) else 0


def forget(path: Path) -> None:
    """Remove the note that a run wrote this file."""
    journal_of(path).unlink(missing_ok=True)


def write(path: Path, plan: Plan, on_progress: Callable[[int], object]) -> None:
    """Write a file under its `.part` name, then give it its own.

    Stopped at any time, another call goes on where this one was and gives the same bytes. The journal stays until
    `forget`, so that a run that writes several files knows which are done.

    Args:
        path: the file; one that is there is replaced at the end.
        plan: what to write.
        on_progress: is told how many bytes more are written, at first those of the earlier run.

    Raises:
        ValueError: the disk is full or fails, or a target raises it; nothing of the file is left.
    """
    with _all_or_nothing(path, plan.nbytes):
        _write_part(path, plan, on_progress)


def write_small(path: Path, content: bytes) -> None:
    """Write a file of any kind under its `.part` name, then give it its own.

    Raises:
        ValueError: the disk is full or fails; nothing of the file is left.
    """
    with _all_or_nothing(path, len(content)):
        part_of(path).write_bytes(content)


@contextlib.contextmanager
def _all_or_nothing(path: Path, num_bytes: int) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        part_of(path).replace(path)
    except OSError as error:
        _discard(path)
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"its disk is full, and {num_bytes / 1e6:,.1f} MB are needed" if is_full else str(error)
        raise ValueError(
            f"{path} could not be written: {reason}; nothing of it is left, so "
            f"{'free some space' if is_full else 'mend that'} and run the same command again."
        ) from error
    except ValueError as error:
        _discard(path)
        raise ValueError(f"{path} was not written: {error}") from error


def _write_part(path: Path, plan: Plan, on_progress: Callable[[int], object]) -> None:
    header, positions = encode_header(plan.tensors)
    done = _num_done(path, plan)
    if not done:
        part_of(path).write_bytes(header)
        journal_of(path).write_bytes(_title(plan))
    on_progress(bytes_done(path, plan))
    with part_of(path).open("r+b", buffering=0) as part, journal_of(path).open("ab", buffering=0) as journal:
        noted, unsynced = done, 0
        for number, target in enumerate(plan.targets[done:], start=done + 1):
            for count in _write_target(part, target, positions):
                on_progress(count)
                unsynced += count
            if unsynced >= SYNC_BYTES or number == len(plan.targets):
                # Only what is safe on the disk is noted.
                os.fsync(part.fileno())
                journal.write(b"." * (number - noted))
                noted, unsynced = number, 0


def _write_target(part: BinaryIO, target: Target, positions: Mapping[str, int]) -> Iterator[int]:
    written = dict.fromkeys(target.tensors, 0)
    for name, rows in target.chunks():
        view = memoryview(rows.contiguous().reshape(-1).view(torch.uint8).numpy())
        part.seek(positions[name] + written[name])
        written[name] += len(view)
        while view:
            count = part.write(view)
            yield count
            view = view[count:]
    wrong = [name for name, kind in target.tensors.items() if written[name] != kind.nbytes]
    assert not wrong, f"{wrong} were not written as planned"


def _title(plan: Plan) -> bytes:
    header, _ = encode_header(plan.tensors)
    return hashlib.sha256(header + plan.identity.encode()).hexdigest().encode() + b"\n"


def _discard(path: Path) -> None:
    for leftover in (part_of(path), journal_of(path)):
        # A folder that cannot be reached is what the error is about.
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)
