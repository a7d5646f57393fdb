"""safetensors files, read and written a few rows at a time.

The `safetensors` library maps a file into memory, where every page that was touched counts, and writes tensors that are
all in memory. Here nothing but the rows at hand is, so that files of any size are converted in little memory.

A file is the length of its header (8 bytes, little-endian), the header (a JSON object, padded with spaces), and the
data: tensors one behind the other, without holes.

Source: the format's description in huggingface/safetensors; the order of tensors is that of its `save_file`.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
from torch import Tensor

# From the last in a file to the first.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
LENGTH_BYTES = 8
ALIGNMENT = 8  # bytes
MAX_HEADER = 100_000_000  # bytes
METADATA = "__metadata__"
WRITTEN_METADATA = {"format": "pt"}
SYNC_BYTES = 64 << 20
"""What a stopped run wrote since the last sync is written again by the next."""
ADVICE = "download or convert it again"
SHOWN_NAME = 100  # characters


class TensorType(NamedTuple):
    """What a tensor is, without its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def num_rows(self) -> int:
        """Length of the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    def of_rows(self, count: int) -> "TensorType":
        """The type of some of the rows."""
        return TensorType(self.dtype, (count, *self.shape[1:]) if self.shape else ())


class Header(NamedTuple):
    """What a file says about its data."""

    tensors: dict[str, TensorType]
    positions: dict[str, int]
    """Where in the file each tensor begins, in bytes."""
    metadata: dict[str, str]


# --- reading ----------------------------------------------------------------------------------------------------------


def read_header(path: Path) -> Header:
    """The header of a file, every line of which is checked against the others and the file's size.

    Raises:
        ValueError: there is no such file, or it is damaged or no safetensors file; says how.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing or no file: {ADVICE}.")
    with path.open("rb") as file:
        try:
            return _parse(*_read_json(file, path.stat().st_size))
        except ValueError as error:
            raise ValueError(f"{path} is damaged, incomplete or no safetensors file: {error}; {ADVICE}.") from error


def _read_json(file: BinaryIO, file_size: int) -> tuple[Any, int, int]:
    """The header, the position of the data and their size."""
    if file_size < LENGTH_BYTES:
        raise ValueError(f"it is {file_size} bytes long, too short for the length of a header")
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    begin = LENGTH_BYTES + length
    if length > MAX_HEADER:
        raise ValueError(f"it announces a header of {length:,} bytes, where {MAX_HEADER:,} are allowed")
    if begin > file_size:
        raise ValueError(f"it is {file_size:,} bytes long but announces a header of {length:,}")
    try:
        return json.loads(file.read(length).decode(), object_pairs_hook=_unique), begin, file_size - begin
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its header has {_shown(twice)} twice")
    return found


def _parse(header: Any, begin: int, data_size: int) -> Header:
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__} instead of an object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not words")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    position = 0
    for name, (_, start, end) in sorted(entries.items(), key=lambda entry: entry[1][1:]):
        if start != position:
            what = "overlaps the tensor before it" if start < position else f"has {start - position:,} bytes before it"
            raise ValueError(f"{_shown(name)} {what}")
        position = end
    if position != data_size:
        raise ValueError(f"its tensors take {position:,} bytes where the file has {data_size:,}")
    return Header(
        {name: kind for name, (kind, _, _) in entries.items()},
        {name: begin + start for name, (_, start, _) in entries.items()},
        metadata,
    )


def _entry(name: str, entry: Any) -> tuple[TensorType, int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{_shown(name)} has no dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{_shown(name)} is of the unknown dtype {_shown(dtype)}")
    if not _are_sizes(shape):
        raise ValueError(f"{_shown(name)} has the impossible shape {_shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{_shown(name)} has the impossible data_offsets {_shown(offsets)}")
    kind = TensorType(DTYPES[dtype], tuple(shape))
    if kind.nbytes != offsets[1] - offsets[0]:
        raise ValueError(f"{_shown(name)} takes {offsets[1] - offsets[0]:,} bytes where {kind.nbytes:,} are needed")
    return kind, *offsets


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def _shown(given: Any) -> str:
    text = str(given)
    return text if len(text) <= SHOWN_NAME else f"{text[:SHOWN_NAME]}..."


class Reader:
    """The tensors of one or several files, whose headers are checked when it is made.

    Raises:
        ValueError: as `read_header`, or two files hold a tensor of the same name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.tensors: dict[str, TensorType] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._files: dict[Path, BinaryIO] = {}
        for path in self.paths:
            header = read_header(path)
            for name in header.tensors.keys() & self.tensors.keys():
                raise ValueError(f"{path} and {self._places[name][0]} both hold {name}: {ADVICE}.")
            self.tensors |= header.tensors
            self.metadata |= header.metadata
            self._places |= {name: (path, position) for name, position in header.positions.items()}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor `[stop - start, ...]`; a scalar is row 0 of itself, `[]`.

        Raises:
            ValueError: the file has become shorter.
            OSError: it cannot be read.
        """
        kind = self.tensors[name]
        rows = kind.of_rows(stop - start)
        path, position = self._places[name]
        # Without a buffer of its own, the file is read straight into the tensor.
        file = self._files.setdefault(path, self._files.get(path) or path.open("rb", buffering=0))
        file.seek(position + kind.of_rows(start).nbytes if kind.shape else position)
        buffer = torch.empty(rows.nbytes, dtype=torch.uint8)
        view = memoryview(buffer.numpy())
        while view:
            count = file.readinto(view)  # type: ignore[attr-defined] # an unbuffered file has it
            if not count:
                raise ValueError(f"{path} became shorter while it was read: {ADVICE}.")
            view = view[count:]
        return buffer.view(rows.dtype).reshape(rows.shape)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor.

        Raises:
            ValueError, OSError: as `rows`.
        """
        return self.rows(name, 0, self.tensors[name].num_rows)

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._files:
            self._files.popitem()[1].close()


# --- writing ----------------------------------------------------------------------------------------------------------


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
