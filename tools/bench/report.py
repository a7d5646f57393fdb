"""Numbers as a benchmark reports them: medians with the range of their uncertainty, in tables."""

import statistics
from collections.abc import Sequence
from math import comb
from typing import NamedTuple

MISS_PROBABILITY = 0.1


class Estimate(NamedTuple):
    """A median and the range of its uncertainty."""

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """The median and the narrowest range between two values that misses the true one with MISS_PROBABILITY or less."""
    ordered = sorted(values)
    count = len(ordered)
    outside = 0
    # How many values are below the true median is distributed as the heads of that many coins are.
    while 2 * sum(comb(count, heads) for heads in range(outside + 2)) <= MISS_PROBABILITY * 2**count:
        outside += 1
    return Estimate(statistics.median(ordered), ordered[outside], ordered[-1 - outside])


def estimate_text(value: Estimate, unit: str = "") -> str:
    """A median with its range."""
    return f"{value.median:.3f}{unit} ({value.low:.3f} .. {value.high:.3f})"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def memory_text(size: int | None) -> str:
    """Bytes as megabytes, where the system told them."""
    return "not measured on this system" if size is None else f"{size / 1e6:.1f} MB"
