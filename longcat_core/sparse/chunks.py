"""Block-sparse attention, the part that decides: which chunks of keys each chunk of queries attends to.

The token grid is cut into chunks of neighbouring tokens, 4 x 4 x 4 in the reference. The mean query of a chunk is
compared with the mean key of every chunk, and the keys of the best chunks are kept, whole. A grid that is not a
multiple of the chunk is padded; what is padded counts in no mean and is seen by no query, so the result is exact.

Source: meituan-longcat/LongCat-Video, `block_sparse_attention`. One difference: at least one chunk is always kept,
where the reference's rounding can leave none and returns zeros.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..frames.geometry import TokenGrid, ceil_div


class Chunking(NamedTuple):
    """A token grid and the size of the chunks that it is cut into, both along time, height and width."""

    grid: TokenGrid
    chunk: TokenGrid

    @property
    def counts(self) -> TokenGrid:
        """Chunks along each axis."""
        return TokenGrid(*(ceil_div(size, step) for size, step in zip(self.grid, self.chunk, strict=True)))

    @property
    def padding(self) -> tuple[int, int, int]:
        """Tokens added behind each axis."""
        sizes = zip(self.grid, self.chunk, self.counts, strict=True)
        frames, height, width = (count * step - size for size, step, count in sizes)
        return frames, height, width

    def split(self, x: Tensor) -> Tensor:
        """Tokens `[B, heads, N, D]`, time slowest, to chunks `[B, heads, chunks, tokens of a chunk, D]`."""
        (frames, height, width), (nt, nh, nw), (t, h, w) = self.padding, self.counts, self.chunk
        if any(self.padding):
            x = nn.functional.pad(x.unflatten(2, self.grid), (0, 0, 0, width, 0, height, 0, frames)).flatten(2, 4)
        pattern = "b heads (nt t nh h nw w) d -> b heads (nt nh nw) (t h w) d"
        return rearrange(x, pattern, nt=nt, nh=nh, nw=nw, t=t, h=h, w=w)

    def join(self, chunks: Tensor) -> Tensor:
        """The inverse of `split`; what was padded is dropped."""
        (nt, nh, nw), (t, h, w), (frames, height, width) = self.counts, self.chunk, self.grid
        pattern = "b heads (nt nh nw) (t h w) d -> b heads (nt t) (nh h) (nw w) d"
        x = rearrange(chunks, pattern, nt=nt, nh=nh, nw=nw, t=t, h=h, w=w)
        return x[:, :, :frames, :height, :width].flatten(2, 4)

    def real(self, device: torch.device) -> Tensor:
        """Which tokens of which chunks are not padding: bool `[chunks, tokens of a chunk]`."""
        ones = torch.ones(1, 1, self.grid.num_tokens, 1, dtype=torch.bool, device=device)
        return self.split(ones)[0, 0, :, :, 0]


class Kept(NamedTuple):
    """The chunks of keys that each chunk of queries attends to."""

    indices: Tensor
    """`[B, heads, chunks of queries, n]`, the best first."""
    counts: Tensor | None
    """How many of the n are kept, `[B, heads, chunks of queries]`; None: all."""


def check_sparsity(sparsity: float | None, cdf: float | None) -> None:
    """Raise ValueError unless at least one rule is given, and each is in its range."""
    if sparsity is None and cdf is None:
        raise ValueError("Block-sparse attention needs sparsity (0.9375 in the reference), cdf, or both.")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(
            f"sparsity is {sparsity}; it is the share of keys that is left out, from 0 (none) to below 1 (0.9375 in "
            f"the reference keeps one chunk of 16)."
        )
    if cdf is not None and not 0 < cdf < 1:
        raise ValueError(f"cdf is {cdf}; it is the share of attention to keep, between 0 and 1.")


def num_kept(sparsity: float | None, num_chunks: int) -> int:
    """Chunks of keys that top-k selection keeps, rounded down as the reference does, at least 1."""
    return max(1, int((1 - sparsity) * num_chunks)) if sparsity is not None else 1


def select(q_means: Tensor, k_means: Tensor, sparsity: float | None, cdf: float | None = None) -> Kept:
    """The chunks of keys with the highest scores for each chunk of queries.

    Args:
        q_means: mean queries fp32 `[B, heads, chunks of queries, D]`.
        k_means: mean keys fp32 `[B, heads, chunks of keys, D]`.
        sparsity: keep this share less than all; None: as `cdf` says alone.
        cdf: keep, from the best on, chunks that together have no more than this share of the attention that the means
            pay to each other, and at least as many as `sparsity` does.
    """
    scores = q_means @ k_means.transpose(-1, -2)
    least = num_kept(sparsity, k_means.shape[2])
    if cdf is None:
        return Kept(scores.topk(least).indices, None)
    weights, indices = (scores * q_means.shape[-1] ** -0.5).softmax(-1).sort(descending=True)
    counts = (weights.cumsum(-1) <= cdf).sum(-1).clamp(min=least)
    return Kept(indices[..., : int(counts.max())], counts)


def means(chunks: Tensor, real: Tensor | None) -> Tensor:
    """Mean token of each chunk, fp32: `[B, heads, chunks, tokens, D] -> [B, heads, chunks, D]`.

    Args:
        chunks: zero where padded.
        real: as `Chunking.real`; None: nothing is padded.
    """
    counted = chunks.shape[3] if real is None else real.sum(1, keepdim=True)
    return chunks.sum(3, dtype=torch.float32) / counted
