"""Attention of the network: between video tokens, and from video tokens to text.

Tokens keep their heads beside each other, `[B, N, heads, head_dim]`, as the projections make and take them; kernels
that want the heads in front see a view.
"""

from typing import Any

import torch
from comfy.ldm.flux.math import apply_rope
from comfy.ldm.modules.attention import optimized_attention
from einops import rearrange
from torch import Tensor, nn

from .call import Call
from .spans import by_spans

NORM_EPS = 1e-6


def split_heads(projected: Tensor, num_parts: int, head_dim: int) -> tuple[Tensor, ...]:
    """Cut a projection `[B, N, num_parts * C]` into its parts `[B, N, heads, head_dim]`."""
    return rearrange(projected, "b n (parts heads d) -> parts b n heads d", parts=num_parts, d=head_dim).unbind(0)


class SelfAttention(nn.Module):
    """Self-attention over video tokens with RMS-normalised, 3D-rotated queries and keys."""

    def __init__(self, hidden_size: int, num_heads: int, split: bool, operations: Any, **kw: Any):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.projections = ("q_linear", "k_linear", "v_linear") if split else ("qkv",)
        for name in self.projections:
            self.add_module(name, operations.Linear(hidden_size, 3 * hidden_size // len(self.projections), **kw))
        self.q_norm = operations.RMSNorm(self.head_dim, eps=NORM_EPS, **kw)
        self.k_norm = operations.RMSNorm(self.head_dim, eps=NORM_EPS, **kw)
        self.proj = operations.Linear(hidden_size, hidden_size, **kw)

    def forward(self, x: Tensor, rotation: Tensor, call: Call, transformer_options: dict) -> Tensor:
        """Tokens `[B, N, C]` to `[B, N, C]`; condition frames see only each other.

        Args:
            x: the tokens.
            rotation: of every token, 2 x 2 matrices `[1, N, 1, head_dim / 2, 2, 2]`.
            call: what the call has in common for all blocks.
            transformer_options: as core hands them to attention; `block_index` says which block this is.
        """
        q, k, v = by_spans(self.rotated, x, rotation)
        k, v = call.past.extend(transformer_options["block_index"], k, v)
        return self.proj(prefix_causal_attention(q, k, v, call, transformer_options))

    def rotated(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens `[B, N, C]` to queries, keys and values `[B, N, heads, head_dim]`; rotation as in `forward`."""
        num_parts = 3 // len(self.projections)
        q, k, v = (
            part for name in self.projections for part in split_heads(getattr(self, name)(x), num_parts, self.head_dim)
        )
        return *apply_rope(self.q_norm(q), self.k_norm(k), rotation), v


def prefix_causal_attention(q: Tensor, k: Tensor, v: Tensor, call: Call, transformer_options: dict) -> Tensor:
    """Attention in which the tokens of condition frames see only each other and the rest see everything.

    Two calls instead of one with a mask: exact, and fast attention kernels that take no mask stay usable.

    Args:
        q: `[B, N, heads, head_dim]`.
        k, v: `[B, M, heads, head_dim]`.
        call: says how many frames are given, and how attention is made sparse.
        transformer_options: as core hands them to attention.

    Returns:
        `[B, N, heads * head_dim]`.
    """
    n = call.num_cond_tokens
    if n in (0, q.shape[1]):
        return video_attention(q, k, v, call, transformer_options)
    prefix = video_attention(q[:, :n], k[:, :n], v[:, :n], call, transformer_options)
    rest = video_attention(q[:, n:], k, v, call, transformer_options)
    return torch.cat([prefix, rest], dim=1)


def video_attention(q: Tensor, k: Tensor, v: Tensor, call: Call, transformer_options: dict) -> Tensor:
    """Attention over whole latent frames, block-sparse if the call asks for it and the keys are a video's.

    Keys of a single latent frame are attended densely, as the reference does for images. Shapes as in
    `prefix_causal_attention`.
    """
    if call.sparse and k.shape[1] > call.grid.tokens_per_frame:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return rearrange(call.sparse(q, k, v, call.grid), "b heads n d -> b n (heads d)")
    return attention(q, k, v, transformer_options)


def attention(q: Tensor, k: Tensor, v: Tensor, transformer_options: dict, mask: Tensor | None = None) -> Tensor:
    """ComfyUI's attention, whichever kernel the user chose; shapes as in `prefix_causal_attention`.

    Args:
        mask: added to the scores, `[B, 1, M]`.
    """
    num_heads = q.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return optimized_attention(
        q, k, v, num_heads, mask=mask, skip_reshape=True, transformer_options=transformer_options
    )


class CrossAttention(nn.Module):
    """Attention from video tokens to text tokens, without positions."""

    def __init__(self, hidden_size: int, num_heads: int, split: bool, operations: Any, **kw: Any):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.text_projections = ("k_linear", "v_linear") if split else ("kv_linear",)
        self.q_linear = operations.Linear(hidden_size, hidden_size, **kw)
        for name in self.text_projections:
            self.add_module(name, operations.Linear(hidden_size, 2 * hidden_size // len(self.text_projections), **kw))
        self.q_norm = operations.RMSNorm(self.head_dim, eps=NORM_EPS, **kw)
        self.k_norm = operations.RMSNorm(self.head_dim, eps=NORM_EPS, **kw)
        self.proj = operations.Linear(hidden_size, hidden_size, **kw)

    def forward(self, x: Tensor, context: Tensor, call: Call, transformer_options: dict) -> Tensor:
        """Video tokens `[B, N, C]` and text tokens `[B, M, C]` to `[B, N, C]`."""
        (q,) = split_heads(self.q_linear(x), 1, self.head_dim)
        num_parts = 2 // len(self.text_projections)
        k, v = (
            part
            for name in self.text_projections
            for part in split_heads(getattr(self, name)(context), num_parts, self.head_dim)
        )
        return self.proj(attention(self.q_norm(q), self.k_norm(k), v, transformer_options, call.text_mask))
