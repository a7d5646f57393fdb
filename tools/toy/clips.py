"""The world of the toy model: one colored shape on a plain background, moving or still, and the sentence that says so.

A clip is 64 x 64 pixels at 15 frames per second. The shape moves one pixel per frame and stops at the edge, so that it
stays in view however long the clip is. Everything that is random comes from a `torch.Generator`.
"""

from __future__ import annotations

import itertools
import random
import re
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 64
SPEED = 1.0  # pixels per frame
MIN_RADIUS, MAX_RADIUS = 13.0, 16.0  # half the side of a shape's bounding box, in pixels

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (50, 80, 220),
    "yellow": (250, 215, 40),
    "purple": (150, 50, 180),
    "cyan": (40, 200, 210),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS = {
    "moving left": (-1.0, 0.0),
    "moving right": (1.0, 0.0),
    "moving up": (0.0, -1.0),
    "moving down": (0.0, 1.0),
    "standing still": (0.0, 0.0),
}
BACKGROUNDS = {"white": (245, 245, 245), "black": (16, 16, 16), "gray": (128, 128, 128), "pink": (255, 190, 205)}
NUM_HELD_OUT = 40
ROOM = 16.0  # pixels: enough for 17 frames


class Subject(NamedTuple):
    """What a clip shows."""

    color: str
    shape: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        """The sentence for it."""
        return f"a {self.color} {self.shape} {self.motion} on a {self.background} background"


SUBJECTS = tuple(Subject(*words) for words in itertools.product(COLORS, SHAPES, MOTIONS, BACKGROUNDS))
HELD_OUT = tuple(random.Random(0).sample(SUBJECTS, NUM_HELD_OUT))
"""Combinations that are never trained on; each of their words is, in other combinations."""
TRAINED = tuple(subject for subject in SUBJECTS if subject not in HELD_OUT)
WORDS = tuple(dict.fromkeys(word for subject in SUBJECTS for word in subject.prompt.split()))


class Clips(NamedTuple):
    """A batch of clips as numbers, before they are drawn."""

    shapes: Tensor
    """Index into SHAPES, `[B]`."""
    colors: Tensor
    """0..255, `[B, 3]`."""
    backgrounds: Tensor
    """0..255, `[B, 3]`."""
    radii: Tensor
    """Pixels, `[B]`."""
    centers: Tensor
    """Pixels (x, y) from the top left corner, `[B, T, 2]`."""


def subject_of(prompt: str) -> Subject:
    """What a prompt speaks of; where it does not say, a red circle moving right on a white background."""
    motions = {motion.split()[1]: motion for motion in MOTIONS}
    choices = ((COLORS, "red"), (SHAPES, "circle"), (motions, "right"), (BACKGROUNDS, "white"))
    words = words_of(prompt)
    color, shape, motion, background = (next((w for w in words if w in names), other) for names, other in choices)
    return Subject(color, shape, motions[motion], background)


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that the toy model was not trained on."""
    return [word for word in words_of(prompt) if word not in WORDS]


def words_of(prompt: str) -> list[str]:
    """The words of a prompt without punctuation, in lower case."""
    return re.findall(r"\w+", prompt.lower())


def random_clips(
    subjects: tuple[Subject, ...],
    num_frames: int,
    generator: torch.Generator,
    room: float = ROOM,
    num_given_frames: int = 0,
    turns: Tensor | None = None,
) -> Clips:
    """Clips of `subjects` at random sizes and places.

    Args:
        room: how far the shape can move from its start before it reaches an edge, in pixels.
        num_given_frames: frames that the model will be given, for `turns`.
        turns: clips whose shape moves in a direction of its own until the last given frame, bool `[B]`.
    """
    count = len(subjects)
    radii = MIN_RADIUS + (MAX_RADIUS - MIN_RADIUS) * torch.rand(count, generator=generator)
    velocity = SPEED * torch.tensor([MOTIONS[subject.motion] for subject in subjects])
    velocities = velocity[:, None].repeat(1, num_frames - 1, 1)
    if turns is not None and num_given_frames > 1:
        own = SPEED * torch.tensor([*MOTIONS.values()])[torch.randint(len(MOTIONS), (count,), generator=generator)]
        velocities[:, : num_given_frames - 1] = torch.where(turns[:, None], own, velocity)[:, None]
    low = (radii + 1)[:, None].expand(-1, 2)
    high = SIZE - low
    start_low = (low - room * velocity.clamp(max=0)).minimum(high)
    start_high = (high - room * velocity.clamp(min=0)).maximum(low)
    start = start_low + (start_high - start_low) * torch.rand(count, 2, generator=generator)
    return Clips(
        shapes=torch.tensor([SHAPES.index(subject.shape) for subject in subjects]),
        colors=torch.tensor([COLORS[subject.color] for subject in subjects]).float(),
        backgrounds=torch.tensor([BACKGROUNDS[subject.background] for subject in subjects]).float(),
        radii=radii,
        centers=path(start, velocities, low, high),
    )


def path(start: Tensor, velocities: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Centers `[B, T + 1, 2]` from `start` `[B, 2]` by `velocities` `[B, T, 2]`, kept between `low` and `high`."""
    centers = [start]
    for velocity in velocities.unbind(1):
        centers.append((centers[-1] + velocity).maximum(low).minimum(high))
    return torch.stack(centers, dim=1)


def draw(clips: Clips) -> Tensor:
    """Pixels of clips, -1..1, `[B, 3, T, SIZE, SIZE]`."""
    inside = coverage(clips.shapes, clips.radii, clips.centers)[:, None]
    color, background = (color.view(-1, 3, 1, 1, 1) / 127.5 - 1 for color in (clips.colors, clips.backgrounds))
    return background + (color - background) * inside


def coverage(shapes: Tensor, radii: Tensor, centers: Tensor) -> Tensor:
    """How much of each pixel a shape covers, 0..1, `[B, T, SIZE, SIZE]`.

    The edge is a ramp one pixel wide along the distance to it. The triangle has its apex at the top; all shapes fill
    the square of side `2 * radii`.
    """
    grid = torch.arange(SIZE) + 0.5
    x = (grid - centers[..., :1])[:, :, None, :]
    y = (grid - centers[..., 1:])[:, :, :, None]
    radius = radii.view(-1, 1, 1, 1)
    distances = (
        radius - torch.hypot(x, y),
        radius - torch.maximum(x.abs(), y.abs()),
        torch.minimum(radius - y, (radius + y - 2 * x.abs()) / 5**0.5),
    )
    inside = distances[0]
    for index, distance in enumerate(distances[1:], start=1):
        inside = torch.where(shapes.view(-1, 1, 1, 1) == index, distance, inside)
    return (inside + 0.5).clamp(0, 1)
