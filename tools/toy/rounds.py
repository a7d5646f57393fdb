"""How long each part of the toy model is trained, and how fast it learns at which step."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

WARM_UP = 60  # steps
CONSTANT = 0.4  # share of the first round before the learning rate falls along a cosine to 0; later rounds fall at once


class Round(NamedTuple):
    """A part of a training after which the learning rate is 0."""

    steps: int
    peak: float
    """Share of the full learning rate at which it starts."""


ROUNDS = {
    "encoder": (Round(1600, 1.0), Round(500, 0.4), Round(1200, 0.5)),
    "decoder": (Round(1800, 1.0), Round(400, 0.4), Round(1600, 0.6), Round(700, 0.4), Round(800, 0.4)),
    "dit": (Round(4800, 1.0), Round(3600, 0.6), Round(1000, 0.4), Round(900, 0.4), Round(1200, 0.4), Round(1200, 0.4)),
}


def shortening(part: str, rounds: Sequence[Round]) -> float:
    """How many steps of the whole recipe one step stands for."""
    return num_steps(ROUNDS[part]) / num_steps(rounds)


def num_steps(rounds: Sequence[Round]) -> int:
    """Of all rounds."""
    return sum(length for length, _ in rounds)


def learning_rate(step: int, rounds: Sequence[Round]) -> float:
    """Share of the full learning rate: a short rise, constant in the first round only, then a cosine to 0."""
    starts = itertools.accumulate((length for length, _ in rounds[:-1]), initial=0)
    start, (length, peak) = max((start, found) for start, found in zip(starts, rounds, strict=True) if start <= step)
    constant = 0.0 if start else CONSTANT
    falling = max(0.0, ((step - start) / length - constant) / (1 - constant))
    return peak * min(1.0, (step - start + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * falling))
