"""A latent space for the toy model, computed rather than trained: principal components of patches of drawn clips.

The first frame is cut into patches of 8 x 8 pixels, the frames after it into patches of 4 frames by 8 x 8 pixels: the
units that a latent of the Wan VAE stands for. The 16 strongest components of each kind are scaled towards equal
strength, mixed by a Hadamard matrix so that all 16 channels matter alike, and brought to unit variance. The VAE is then
trained to compute these latents and to undo them, while the transformer is trained on the latents themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

CHANNELS = 16
PATCH = 8  # pixels
FRAMES = 4  # frames of a patch after the first frame
WHITENING = 0.5  # 0 leaves the components as strong as they are, 1 makes them equal


class Projection(NamedTuple):
    """An affine map from patches `[N, D]` to `[N, CHANNELS]`: `(patches - mean) @ matrix`."""

    mean: Tensor
    matrix: Tensor


class LatentSpace(NamedTuple):
    """The maps for the first frame and for groups of four frames."""

    first: Projection
    rest: Projection

    @classmethod
    def of(cls, tensors: Iterable[Iterable[Tensor]]) -> LatentSpace:
        """The space of tensors that were saved."""
        return cls(*(Projection(*projection) for projection in tensors))

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels -1..1 `[B, 3, 4n + 1, H, W]` to unit-variance latents `[B, 16, n + 1, H/8, W/8]`."""
        return torch.cat([_project(part, map_) for part, map_ in zip(_parts(pixels), self, strict=True)], dim=2)


def fit(pixels: Tensor) -> LatentSpace:
    """Find the maps on sample clips, -1..1, `[B, 3, 4n + 1, H, W]`."""
    return LatentSpace(*(_fit(_patches(part)) for part in _parts(pixels)))


def _parts(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the first frame; each part as `[B, 3, groups, frames, H, W]`."""
    return pixels[:, :, :1, None], pixels[:, :, 1:].unflatten(2, (-1, FRAMES))


def _patches(part: Tensor) -> Tensor:
    """`[B, 3, groups, frames, H, W] -> [B, groups, H/8, W/8, 3 * frames * 64]`."""
    cut = part.unflatten(-1, (-1, PATCH)).unflatten(4, (-1, PATCH))
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _project(part: Tensor, projection: Projection) -> Tensor:
    return ((_patches(part) - projection.mean) @ projection.matrix).permute(0, 4, 1, 2, 3)


def _fit(patches: Tensor) -> Projection:
    samples = patches.flatten(0, 3)
    mean = samples.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov((samples - mean).T))
    strongest = directions[:, -CHANNELS:] * variances[-CHANNELS:].pow(-WHITENING / 2)
    mixed = strongest @ _hadamard(CHANNELS)
    return Projection(mean, mixed / ((samples - mean) @ mixed).std(dim=0))


def _hadamard(size: int) -> Tensor:
    """Sylvester's orthogonal matrix of +1 and -1."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix
