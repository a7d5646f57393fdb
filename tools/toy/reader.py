"""Read off the frames of a video what the toy model's prompts speak of: color, background, shape, direction.

Plain image code, written against drawn clips only: no network, nothing tuned on generated videos.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from toy.clips import BACKGROUNDS, COLORS, MOTIONS, SHAPES, coverage

STILL = 4.0  # pixels between the first and the last frame below which nothing moved
MIN_AREA = 40  # pixels; a smaller spot is no shape
BOUNDING_BOX = (np.pi, 4.0, 2.0)  # area of each of SHAPES over its squared radius
CENTROID = (0.0, 0.0, 1 / 3)  # how far below the middle of its bounding box each of SHAPES has its centroid, in radii


class Reading(NamedTuple):
    """What a video shows."""

    color: str
    shape: str
    motion: str
    background: str
    centroids: np.ndarray
    """Pixels (x, y) of the shape's center of mass, `[T, 2]`; NaN where there is no shape."""


def read(frames: np.ndarray) -> Reading:
    """Read a video, uint8 `[T, height, width, 3]`."""
    pixels: np.ndarray = frames.astype(np.float32)
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    background = np.median(border.reshape(-1, 3), axis=0)
    distance = np.linalg.norm(pixels - background, axis=-1)
    color = np.median(pixels[distance >= np.quantile(distance, 0.95)], axis=0)
    inside = np.clip(distance / max(np.linalg.norm(color - background), 1.0), 0, 1)
    centroids = np.stack([centroid(frame) for frame in inside])
    return Reading(
        nearest(color, COLORS), shape(inside, centroids), motion(centroids), nearest(background, BACKGROUNDS), centroids
    )


def nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Name of the palette's color that is nearest in RGB."""
    return min(palette, key=lambda name: float(np.linalg.norm(color - palette[name])))


def centroid(inside: np.ndarray) -> np.ndarray:
    """Center of mass (x, y) of the pixels that are more shape than background, in pixels; NaN if there are few."""
    y, x = np.nonzero(inside > 0.5)
    return np.array([x.mean() + 0.5, y.mean() + 0.5]) if len(x) >= MIN_AREA else np.full(2, np.nan)


def motion(centroids: np.ndarray) -> str:
    """The motion whose direction the shape took from the first frame that has one to the last."""
    seen = centroids[~np.isnan(centroids[:, 0])]
    if not len(seen):
        return ""
    path = seen[-1] - seen[0]
    if np.linalg.norm(path) < STILL:
        return "standing still"
    return max(MOTIONS, key=lambda name: float(np.dot(MOTIONS[name], path)))


def shape(inside: np.ndarray, centroids: np.ndarray) -> str:
    """The shape that overlaps best, over all frames, when drawn with the same area around the same center of mass."""
    seen = ~np.isnan(centroids[:, 0])
    mask, centers = inside[seen] > 0.5, torch.from_numpy(centroids[seen]).float()
    if not len(mask):
        return ""
    overlaps = []
    for index, (area, below) in enumerate(zip(BOUNDING_BOX, CENTROID, strict=True)):
        radii = torch.from_numpy(np.sqrt(mask.sum(axis=(1, 2)) / area)).float()
        middles = centers - torch.stack([torch.zeros_like(radii), below * radii], dim=1)
        template = coverage(torch.full((len(mask),), index), radii, middles[:, None])[:, 0].numpy() > 0.5
        overlaps.append(float(np.mean((mask & template).sum(axis=(1, 2)) / (mask | template).sum(axis=(1, 2)))))
    return SHAPES[int(np.argmax(overlaps))]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures or videos of the same size, in dB."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
