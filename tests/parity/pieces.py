"""Modules of the network on their own, in the calling conventions of the reference.

The reference packs texts of several lengths into one row, and gives zeros where it skips cross-attention.
"""

from typing import Any

import torch
from comfy.ldm.flux.layers import timestep_embedding
from network import rope_freqs
from torch import Tensor

from longcat_core.frames.geometry import TokenGrid
from longcat_core.network.call import Call
from longcat_core.network.dit import LongCatVideoTransformer

FIRST_BLOCK = {"block_index": 0}


def unpack_text(cond: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Texts packed into one row `[1, sum, C]` to `[B, longest, C]`, with the mask that hides the padding."""
    rows = cond[0].split(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    hidden = torch.arange(padded.shape[1]) >= torch.tensor(lengths)[:, None]
    return padded, hidden.unsqueeze(1) * torch.finfo(padded.dtype).min


def rotation(args: Any) -> Tensor:
    """Rotation of every token of a piece, as the network makes it."""
    return rope_freqs(args.shape, 64).transpose(1, 2)


def self_attention(network: LongCatVideoTransformer, i: Any, a: Any) -> Tensor:
    """Self-attention."""
    call = Call(TokenGrid(*a.shape), a.num_cond_latents)
    return network.blocks[0].attn(i.x, rotation(a), call, FIRST_BLOCK)


def cross_attention(network: LongCatVideoTransformer, i: Any, a: Any) -> Tensor:
    """Cross-attention; the reference returns zeros for condition tokens, we do not compute them."""
    text, mask = unpack_text(i.cond, a.kv_seqlen)
    call = Call(TokenGrid(*a.shape), a.num_cond_latents, mask)
    n = call.num_cond_tokens
    return torch.nn.functional.pad(network.blocks[0].cross_attn(i.x[:, n:], text, call, FIRST_BLOCK), (0, 0, n, 0))


def block(network: LongCatVideoTransformer, i: Any, a: Any) -> Tensor:
    """A whole block; without cross-attention all of its tokens are condition tokens."""
    text, mask = unpack_text(i.cond, a.kv_seqlen)
    grid = TokenGrid(*a.shape)
    call = Call(grid, grid.frames if a.skip_crs_attn else a.num_cond_latents, mask)
    return network.blocks[0](i.x, text, i.t, rotation(a), call, FIRST_BLOCK)


PIECES = {
    "x_embedder": lambda net, i, a: net.x_embedder(i.x),
    "t_embedder": lambda net, i, a: net.t_embedder(i.t),
    "timestep_embedding": lambda net, i, a: timestep_embedding(i.t, a.dim, time_factor=1.0),
    "y_embedder": lambda net, i, a: net.y_embedder(i.y),
    "blocks.0.ffn": lambda net, i, a: net.blocks[0].ffn(i.x),
    "blocks.0.attn.q_norm": lambda net, i, a: net.blocks[0].attn.q_norm(i.x),
    "blocks.0.pre_crs_attn_norm": lambda net, i, a: net.blocks[0].pre_crs_attn_norm(i.x),
    "final_layer": lambda net, i, a: net.final_layer(i.x, i.t),
    "blocks.0.attn": self_attention,
    "blocks.0.cross_attn": cross_attention,
    "blocks.0": block,
}
