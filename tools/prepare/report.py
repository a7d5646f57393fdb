"""How far a run is, and what it took."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from prepare.plan import Output

if sys.platform != "win32":
    import resource


def progress_bar(title: str, outputs: Iterable[Output]) -> Any:
    """A bar for all numbers of files, in bytes."""
    return tqdm(desc=title, total=sum(map(num_data_bytes, outputs)), unit="B", unit_scale=True)


def num_data_bytes(output: Output) -> int:
    """Size of a file's tensors."""
    return sum(kind.nbytes for kind in output.plan.tensors.values())


def peak_memory() -> str:
    """The most memory that this process has had, as words; nothing on Windows, which does not say it."""
    if sys.platform == "win32":
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"; at most {peak / 1e6:,.0f} MB of memory"
