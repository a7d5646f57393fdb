"""The learning curves of the toy model, from the logs of its training. Needs the standard library only.

Losses are on a logarithmic scale; a line is the mean over the steps since the last one, smoothed over `SMOOTHING`
lines.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT, MARGIN = 400, 260, 48
SMOOTHING = 5  # log lines
COLORS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8e5ea2", "#000000")
NAMES = {
    "0": "text to video",
    "1": "image to video",
    "2": "from 5 frames",
    "4": "from 13 frames",
    "mse": "squared error",
    "l1": "absolute error",
    "held_out": "all, prompts held out",
}


class Chart(NamedTuple):
    """One part of the model."""

    title: str
    steps: list[int]
    curves: dict[str, list[float]]


def write_picture(work: Path, picture: Path) -> None:
    """Write the charts of all parts side by side, as an SVG.

    Args:
        work: the folder that scripts/train_toy.py wrote its logs to.
        picture: the file to write.
    """
    charts = [read_log(work / f"{part}.jsonl") for part in ("encoder", "decoder", "dit")]
    body = "".join(draw(chart, left=index * WIDTH) for index, chart in enumerate(charts))
    size = f'width="{WIDTH * len(charts)}" height="{HEIGHT}"'
    picture.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n'
        f'<rect {size} fill="white"/>\n{body}</svg>\n',
        encoding="utf-8",
    )


def read_log(path: Path) -> Chart:
    """The curves of a log; held-out losses are those of the transformer, whose prompts are split."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = sorted({name for line in lines for name in line["train"]})
    curves = {name: smoothed([line["train"].get(name, math.nan) for line in lines]) for name in names}
    if path.stem == "dit":
        curves["held_out"] = smoothed([line["held_out"] for line in lines])
    return Chart(path.stem, [line["step"] for line in lines], curves)


def smoothed(values: list[float]) -> list[float]:
    """Means over the last `SMOOTHING` values that there are."""
    means = []
    for index in range(len(values)):
        recent = [value for value in values[max(0, index - SMOOTHING + 1) : index + 1] if not math.isnan(value)]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means


def draw(chart: Chart, left: int) -> str:
    """One chart, `left` pixels from the left edge."""
    values = [value for curve in chart.curves.values() for value in curve if not math.isnan(value)]
    low, high = math.log10(min(values)), math.log10(max(values))

    def x(step: float) -> float:
        return left + MARGIN + (WIDTH - MARGIN - 10) * step / chart.steps[-1]

    def y(value: float) -> float:
        return 30 + (HEIGHT - MARGIN - 30) * (high - math.log10(value)) / (high - low)

    parts = [
        f'<text x="{left + WIDTH / 2:.0f}" y="18" text-anchor="middle" font-size="13">{chart.title}</text>',
        f'<path d="M{x(0):.0f} 30V{HEIGHT - MARGIN}H{left + WIDTH - 10}" fill="none" stroke="black"/>',
    ]
    for value in ticks(low, high):
        parts.append(f'<text x="{x(0) - 4:.0f}" y="{y(value) + 4:.0f}" text-anchor="end">{value:g}</text>')
    for step in (0, chart.steps[-1] // 2, chart.steps[-1]):
        parts.append(f'<text x="{x(step):.0f}" y="{HEIGHT - MARGIN + 14}" text-anchor="middle">{step}</text>')
    for index, (name, curve) in enumerate(chart.curves.items()):
        points = " ".join(
            f"{x(step):.1f},{y(value):.1f}"
            for step, value in zip(chart.steps, curve, strict=True)
            if not math.isnan(value)
        )
        place = f'x="{left + WIDTH - 14}" y="{42 + 14 * index}" text-anchor="end" fill="{COLORS[index]}"'
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[index]}"/>')
        parts.append(f"<text {place}>{NAMES[name]}</text>")
    parts.append(f'<text x="{left + WIDTH / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle">step</text>')
    return "\n".join(parts) + "\n"


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two logarithms."""
    candidates = [
        mantissa * 10.0**exponent for exponent in range(math.floor(low), math.ceil(high)) for mantissa in (1, 2, 5)
    ]
    return [value for value in candidates if low <= math.log10(value) <= high]
