"""Block-sparse attention with PyTorch's flex_attention, whose kernel reads the kept chunks in place."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from .chunks import Kept, means, select
from .gather import attend_gathered

MIN_TILE = 16
MAX_DEVIATION = 0.02  # of two backends, relative; bf16 rounds by 0.004
MAX_TILE = 64
WARPS = 4  # of a kernel for tiles of 64 x 64
MAX_COMPILED_SIZES = 256
# What says nothing about flex_attention: too little memory, and a card that reports a fault of whatever ran on it.
UNRELATED = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
FAILED: set[tuple[torch.device, torch.dtype, bool]] = set()
"""Cases in which flex_attention failed in this process."""


def attend_flex(q: Tensor, k: Tensor, v: Tensor, kept: Kept, real_k: Tensor | None) -> Tensor:
    """Attention of query chunks to their kept key chunks, read in place; arguments as `attend_gathered`."""
    from torch.nn.attention.flex_attention import BlockMask

    tokens_q, (num_k, tokens_k) = q.shape[3], k.shape[2:4]
    indices = torch.nn.functional.pad(kept.indices, (0, num_k - kept.indices.shape[3])).int()
    counts = torch.full_like(indices[..., 0], kept.indices.shape[3]) if kept.counts is None else kept.counts.int()
    mask = BlockMask.from_kv_blocks(
        counts,
        indices,
        BLOCK_SIZE=(tokens_q, tokens_k),
        mask_mod=None if real_k is None else is_real(real_k.flatten()),
        compute_q_blocks=q.requires_grad,  # only gradients need them, and they take longer than the attention
    )
    tiles = {"BLOCK_M": tile(tokens_q), "BLOCK_N": tile(tokens_k), "num_warps": WARPS} if q.is_cuda else {}
    flat = [x.flatten(2, 3) for x in (q, k, v)]
    with torch._dynamo.config.patch(recompile_limit=MAX_COMPILED_SIZES):
        return compiled_flex(q.device.type)(*flat, block_mask=mask, kernel_options=tiles).view_as(q)


def attend_flex_or_gathered(q: Tensor, k: Tensor, v: Tensor, kept: Kept, real_k: Tensor | None) -> Tensor:
    """With flex_attention, and after its first failure gathered; arguments as `attend_gathered`."""
    case = (q.device, q.dtype, real_k is None)
    if case not in FAILED:
        try:
            return attend_flex(q, k, v, kept, real_k)
        except UNRELATED:
            raise
        except flex_errors() as error:
            FAILED.add(case)
            say_once(f"LongCat Block-Sparse Attention goes on with gather: flex {failure(error)}.")
    return attend_gathered(q, k, v, kept, real_k)


def flex_errors() -> tuple[type[Exception], ...]:
    """What flex_attention fails with where it is missing, cannot be compiled, or was compiled too often."""
    too_often = getattr(torch._dynamo.exc, "FailOnRecompileLimitHit", RuntimeError)  # not in older versions
    return (ImportError, AttributeError, TypeError, RuntimeError, too_often)


def failure(error: Exception) -> str:
    """An error in one line."""
    return f"fails with {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def is_real(real: Tensor) -> Callable[..., Tensor]:
    """flex_attention's form of a mask over keys `[m]`."""
    return lambda b, h, q_index, k_index: real[k_index]


def tile(chunk_tokens: int) -> int:
    """The largest tile of a kernel, a power of two, that divides a chunk."""
    return min(MAX_TILE, chunk_tokens & -chunk_tokens)


@functools.cache
def compiled_flex(device_type: str) -> Callable[..., Any]:
    """flex_attention, compiled as a whole or not at all: what runs uncompiled ignores which chunks are kept.

    For CPUs PyTorch 2.13 writes code that does not compile when sizes are variables.
    """
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=device_type != "cpu")


@functools.cache
def say_once(sentence: str) -> None:
    """Write to the log what is not yet there."""
    logging.info(sentence)


@functools.cache
def flex_problem(
    device: torch.device, dtype: torch.dtype, head_dim: int, chunk_tokens_q: int, chunk_tokens_k: int
) -> str | None:
    """Why flex_attention cannot be used here, found by trying it on a small example; None if it can."""
    if min(tile(chunk_tokens_q), tile(chunk_tokens_k)) < MIN_TILE:
        return f"chunks of {chunk_tokens_q} and {chunk_tokens_k} tokens are not multiples of {MIN_TILE}"
    generator = torch.Generator().manual_seed(0)
    sizes = (chunk_tokens_q, chunk_tokens_k, chunk_tokens_k)
    q, k, v = (torch.randn(1, 2, 4, n, head_dim, generator=generator).to(device, dtype) for n in sizes)
    kept = select(means(q, None), means(k, None), 0.5)
    padded = torch.ones(4, chunk_tokens_k, dtype=torch.bool, device=device)
    padded[-1, -1] = False
    for real in (None, padded):
        try:
            found = attend_flex(q, k, v, kept, real)
        except UNRELATED:
            raise
        except flex_errors() as error:
            return f"it {failure(error)}"
        expected = attend_gathered(q, k, v, kept, real)
        deviation = (found - expected).float().norm() / expected.float().norm()
        if not deviation < MAX_DEVIATION:
            return f"its result deviates by {deviation:.2g} from that of gather"
    return None
