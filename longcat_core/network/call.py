"""What one call of the network has in common for all of its blocks.

Everything that a block needs besides its tokens travels in a `Call`, made at the top of the forward. Frames are
counted, not tokens: a device that holds a part of every frame has other tokens, but the same frames.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..frames.geometry import TokenGrid
from ..sparse.attention import BlockSparse


class Past(Protocol):
    """Keys and values of latent frames that stand before those of a call."""

    @property
    def num_latents(self) -> int:
        """How many leading frames need not be computed."""

    def extend(self, block_index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, N, heads, head_dim]` of a block's own tokens to those that its queries attend to."""


@dataclass(frozen=True)
class Nothing:
    """No frames stand before those of the call."""

    num_latents: int = 0

    def extend(self, block_index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The block's own, alone."""
        return k, v


NOTHING = Nothing()


@dataclass(frozen=True)
class Call:
    """What one call has in common for all blocks."""

    grid: TokenGrid
    """Tokens of the call along time, height and width."""
    num_cond_latents: int = 0
    """Leading latent frames that see only each other, and not the text."""
    text_mask: Tensor | None = None
    """Added to the scores of text tokens, `[B, 1, M]`; None: all are attended."""
    past: Past = NOTHING
    sparse: BlockSparse | None = None
    """How self-attention is made sparse; None: not at all."""

    @property
    def num_cond_tokens(self) -> int:
        """Tokens of the leading frames that see only each other."""
        return self.num_cond_latents * self.grid.tokens_per_frame

    @property
    def first_frame(self) -> int:
        """Position of the first frame in its video."""
        return self.past.num_latents
