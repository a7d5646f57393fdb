"""One run of the command: plan, check, write, compare."""

import argparse
import hashlib
from pathlib import Path

from host.lock import exclusive
from host.process import HostError
from host.setup import cache_root

from longcat_core.weights import safetensors_writer
from prepare.comparing import compare
from prepare.plan import plan_work
from prepare.writing import check_disk, write_outputs


def run(options: argparse.Namespace) -> int:
    """Do what the options of scripts/prepare_weights.py ask for, and return the exit status.

    Raises:
        HostError: it cannot be done; the message is a sentence for the user.
    """
    try:
        with exclusive(lock_of(options.dest)):
            return prepare(options)
    except (ValueError, OSError) as error:
        raise HostError(str(error)) from error


def lock_of(dest: Path) -> Path:
    """The file that a run holds while it writes into a folder: two would write the same bytes into each other's way."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(str(dest.resolve()).encode()).hexdigest()[:16]}.lock"


def prepare(options: argparse.Namespace) -> int:
    """Plan, check, write, and compare; return the exit status.

    Raises:
        ValueError: the source is not understood or damaged, files are there already, or a disk is too small.
        OSError: a file cannot be read or written.
    """
    work = plan_work(options.source, options.dest, options.dtype, options.layout)
    finished = {output.path for output in work.outputs if safetensors_writer.is_finished(output.path, output.plan)}
    present = {output.path for output in work.outputs if output.path.exists()} - finished
    changed = {copy.path for copy in work.copies if copy.path.exists() and copy.path.read_bytes() != copy.content}
    in_the_way = sorted(changed if options.validate else changed | present)
    if in_the_way and not options.force:
        raise ValueError(
            f"{', '.join(map(str, in_the_way))}: already there; name another folder, compare with --validate, or "
            "replace with --force."
        )
    kept = finished if options.force else finished | present
    new = [output for output in work.outputs if output.path not in kept]
    check_disk(new)
    for path in sorted(kept):
        print(f"{path}: already there, not written again")
    for path in work.left_out:
        print(f"{path}: left out, as LoRAs are read from ComfyUI's models/loras; --layout comfy writes it")
    for copy in work.copies:
        safetensors_writer.write_small(copy.path, copy.content)
    if new:
        write_outputs(new)
    for output in work.outputs:
        safetensors_writer.forget(output.path)
    return max([compare(output) for output in work.outputs]) if options.validate else 0
