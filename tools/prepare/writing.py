"""Files written, where there is room for them."""

import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from longcat_core.weights import safetensors_writer
from prepare.plan import Output
from prepare.report import num_data_bytes, peak_memory, progress_bar


def check_disk(outputs: Iterable[Output]) -> None:
    """Raise ValueError if a disk has less room than the files will take."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for output in outputs:
        # The folders in ComfyUI's models folder may be links to several disks.
        place = next(folder for folder in output.path.parents if folder.is_dir())
        disk = place.stat().st_dev
        needed[disk] = (
            needed.get(disk, 0) + output.plan.nbytes - safetensors_writer.bytes_done(output.path, output.plan)
        )
        places[disk] = place
    for disk, num_bytes in needed.items():
        free = shutil.disk_usage(places[disk]).free
        if free < num_bytes:
            raise ValueError(
                f"The disk of {places[disk]} has {free / 1e6:,.1f} MB free, {num_bytes / 1e6:,.1f} MB are needed: free "
                "some, or name a folder on another disk."
            )


def write_outputs(outputs: Sequence[Output]) -> None:
    """Write files, showing how far it is, and say what was written in which time.

    Raises:
        ValueError: a disk is full or fails, or the source has numbers that are not finite.
    """
    started = time.monotonic()
    done = sum(safetensors_writer.bytes_done(output.path, output.plan) for output in outputs)
    with progress_bar("writing", outputs) as bar:
        for output in outputs:
            bar.set_description(output.path.name)
            safetensors_writer.write(output.path, output.plan, bar.update)
    seconds = time.monotonic() - started
    for output in outputs:
        print(f"{output.path}: {output.kind}, {output.path.stat().st_size / 1e6:,.1f} MB")
    num_bytes = sum(num_data_bytes(output) for output in outputs) - done
    print(f"{num_bytes / 1e6:,.1f} MB in {seconds:.1f} s, {num_bytes / 1e6 / seconds:.0f} MB/s{peak_memory()}")
