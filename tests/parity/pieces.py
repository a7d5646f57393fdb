"""Modules of the network on their own, in the calling conventions of the reference.

The reference packs texts of several lengths into one row, and gives zeros where it skips cross-attention.
"""

from typing import Any

import torch
from comfy.ldm.flux.layers import timestep_embedding
from network import rope_freqs
from torch import Tensor

from longcat_core.frames.geometry import TokenGrid
from longcat_core.network.dit import TEXT_MASK, LongCatVideoTransformer


def unpack_text(cond: Tensor, lengths: list[int]) -> tuple[Tensor, dict]:
    """Texts packed into one row `[1, sum, C]` to `[B, longest, C]`, with the options that hide the padding."""
    rows = cond[0].split(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    hidden = torch.arange(padded.shape[1]) >= torch.tensor(lengths)[:, None]
    return padded, {TEXT_MASK: hidden.unsqueeze(1) * torch.finfo(padded.dtype).min}


def tokens_of(args: Any) -> int:
    """Condition tokens of a piece."""
    return args.num_cond_latents * TokenGrid(*args.shape).tokens_per_frame


def cross_attention(network: LongCatVideoTransformer, i: Any, a: Any) -> Tensor:
    """Cross-attention; the reference returns zeros for condition tokens, we do not compute them."""
    text, options = unpack_text(i.cond, a.kv_seqlen)
    out = network.blocks[0].cross_attn(i.x[:, tokens_of(a) :], text, options)
    return torch.nn.functional.pad(out, (0, 0, tokens_of(a), 0))


def block(network: LongCatVideoTransformer, i: Any, a: Any) -> Tensor:
    """A whole block; without cross-attention all of its tokens are condition tokens."""
    text, options = unpack_text(i.cond, a.kv_seqlen)
    num_cond_tokens = i.x.shape[1] if a.skip_crs_attn else tokens_of(a)
    return network.blocks[0](i.x, text, i.t, rope_freqs(a.shape, 64), num_cond_tokens, options)


PIECES = {
    "x_embedder": lambda net, i, a: net.x_embedder(i.x),
    "t_embedder": lambda net, i, a: net.t_embedder(i.t),
    "timestep_embedding": lambda net, i, a: timestep_embedding(i.t, a.dim, time_factor=1.0),
    "y_embedder": lambda net, i, a: net.y_embedder(i.y),
    "blocks.0.ffn": lambda net, i, a: net.blocks[0].ffn(i.x),
    "blocks.0.attn.q_norm": lambda net, i, a: net.blocks[0].attn.q_norm(i.x),
    "blocks.0.pre_crs_attn_norm": lambda net, i, a: net.blocks[0].pre_crs_attn_norm(i.x),
    "final_layer": lambda net, i, a: net.final_layer(i.x, i.t),
    "blocks.0.attn": lambda net, i, a: net.blocks[0].attn(i.x, rope_freqs(a.shape, 64), tokens_of(a), {}),
    "blocks.0.cross_attn": cross_attention,
    "blocks.0": block,
}
