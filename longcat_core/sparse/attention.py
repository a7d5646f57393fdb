"""Block-sparse attention, the part that computes: queries attend to the chunks of keys that `chunks.select` kept.

Two backends give the same numbers (to rounding) from the same selection:

    flex    PyTorch's flex_attention, compiled: on CUDA one kernel that skips the chunks that are not kept
    gather  copies the kept keys of some query chunks together and runs ordinary attention on them; runs everywhere

Heads are independent of each other, and so many of them are computed at once as fit `GROUP_BYTES`: at 168,960 tokens
(720p, 30 frames per second) a copy of all of them would take gigabytes.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch._dynamo
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..frames.geometry import TokenGrid
from .chunks import Chunking, Kept, check_sparsity, means, select

Backend = Literal["auto", "flex", "gather"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Attend = Callable[[Tensor, Tensor, Tensor, Kept, Tensor | None], Tensor]

BLOCK_SPARSE = "longcat_block_sparse"
"""The key of `transformer_options` that a `BlockSparse` is under."""
DEFAULT_SPARSITY = 0.9375
DEFAULT_CHUNK = TokenGrid(4, 4, 4)
GROUP_BYTES = 2**28
GATHER_BYTES = 2**30
CACHE_BYTES = 2**20  # of one CPU core
MIN_TILE = 16
MAX_DEVIATION = 0.02  # of two backends, relative; bf16 rounds by 0.004
MAX_TILE = 64
WARPS = 4  # of a kernel for tiles of 64 x 64
MAX_COMPILED_SIZES = 256
FAILED: set[tuple[torch.device, torch.dtype, bool]] = set()
"""Cases in which flex_attention failed in this process."""


@dataclass(frozen=True)
class BlockSparse:
    """How the self-attention of a network is made sparse; arguments as `block_sparse_attention`'s."""

    sparsity: float | None = DEFAULT_SPARSITY
    cdf: float | None = None
    chunk: TokenGrid = DEFAULT_CHUNK
    backend: Backend = "auto"

    def check_fits(self, grid: TokenGrid) -> None:
        """Raise ValueError if a chunk is higher or wider than a frame of this token grid.

        Along time a video may be shorter than a chunk: short ones are ordinary, and padding is exact.
        """
        if self.chunk.height > grid.height or self.chunk.width > grid.width:
            raise ValueError(
                f"Block-sparse attention has chunks of {self.chunk.height} x {self.chunk.width} tokens, and a frame "
                f"of this video has {grid.height} x {grid.width} (16 x 16 pixels each). Lower the chunk's height and "
                f"width (4 in the reference), or make a larger video."
            )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> Tensor:
        """Attention of queries `[B, heads, n, D]` to keys and values `[B, heads, m, D]`, whole frames each.

        Args:
            q, k, v: after norm and rotation.
            grid: of the video; height and width are those of a frame.

        Raises:
            ValueError: as `check_fits`.
        """
        self.check_fits(grid)
        grid_q, grid_k = (grid._replace(frames=x.shape[2] // grid.tokens_per_frame) for x in (q, k))
        return block_sparse_attention(
            q, k, v, grid_q, grid_k, self.chunk, self.chunk, self.sparsity, self.cdf, self.backend
        )


@torch.compiler.disable  # inside another graph flex_attention would not be compiled by itself, and then be dense
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid_q: tuple[int, int, int],
    grid_k: tuple[int, int, int],
    chunk_q: tuple[int, int, int],
    chunk_k: tuple[int, int, int],
    sparsity: float | None,
    cdf: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention in which each chunk of queries sees the chunks of keys that matter most to it.

    Source: meituan-longcat/LongCat-Video, `flash_attn_bsa_3d`.

    Args:
        q: `[B, heads, n, D]` after norm and rotation, tokens in the order of their grid, time slowest.
        k, v: `[B, heads, m, D]` likewise.
        grid_q, grid_k: tokens along time, height and width, n and m altogether.
        chunk_q, chunk_k: tokens of a chunk along time, height and width.
        sparsity, cdf: as `chunks.select`.
        backend: auto takes flex on CUDA if it works there, else gather, and says so once.

    Returns:
        `[B, heads, n, D]`.

    Raises:
        ValueError: grids and tokens do not agree, a number is out of its range, or the backend cannot be had.
    """
    check_sparsity(sparsity, cdf)
    queries, keys = (Chunking(TokenGrid(*g), TokenGrid(*c)) for g, c in ((grid_q, chunk_q), (grid_k, chunk_k)))
    for name, x, chunking in (("queries", q, queries), ("keys", k, keys)):
        check_chunking(name, x.shape[2], chunking)
    attend = find_backend(backend, q, queries.chunk.num_tokens, keys.chunk.num_tokens)
    real_q, real_k = (c.real(q.device) if any(c.padding) else None for c in (queries, keys))

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_chunks, k_chunks = queries.split(q), keys.split(k)
        kept = select(means(q_chunks, real_q), means(k_chunks, real_k), sparsity, cdf)
        return queries.join(attend(q_chunks, k_chunks, keys.split(v), kept, real_k))

    # Heads side by side in every token, so that bringing them together afterwards copies nothing.
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
    for heads in head_groups(q, k):
        out[:, heads] = attended(q[:, heads], k[:, heads], v[:, heads])
    return out


def check_chunking(name: str, num_tokens: int, chunking: Chunking) -> None:
    """Raise ValueError unless the grid holds that many tokens and the chunk has at least one along each axis."""
    if chunking.grid.num_tokens != num_tokens:
        raise ValueError(
            f"There are {num_tokens} {name}, but their grid {tuple(chunking.grid)} has {chunking.grid.num_tokens} "
            f"tokens: both must be the same number."
        )
    if min(chunking.chunk) < 1:
        raise ValueError(f"A chunk of {name} is {tuple(chunking.chunk)} tokens; each number must be at least 1.")


def head_groups(q: Tensor, k: Tensor) -> list[slice]:
    """Heads to compute at once, so that the copies of their queries, keys, values and output fit `GROUP_BYTES`.

    All groups are of one size, for which a kernel is compiled once.
    """
    heads = q.shape[1]
    head_bytes = 2 * (q.numel() + k.numel()) // heads * q.element_size()
    step = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= max(1, GROUP_BYTES // head_bytes))
    return [slice(start, start + step) for start in range(0, heads, step)]


def attend_gathered(q: Tensor, k: Tensor, v: Tensor, kept: Kept, real_k: Tensor | None) -> Tensor:
    """Attention of query chunks to their kept key chunks, which are copied together, some query chunks at a time.

    Args:
        q: `[B, heads, chunks of queries, tokens, D]`.
        k, v: `[B, heads, chunks of keys, tokens, D]`.
        kept: what each chunk of queries sees.
        real_k: tokens that are not padding, as `Chunking.real`; None: all.

    Returns:
        As `q`.
    """
    first = torch.arange(q.shape[0] * q.shape[1], device=q.device) * k.shape[2]
    indices = (kept.indices.flatten(0, 1) + first.view(-1, 1, 1)).flatten(0, 1)
    counts = None if kept.counts is None else kept.counts.flatten()
    rows, k_rows, v_rows = (x.flatten(0, 2) for x in (q, k, v))

    row_bytes = 2 * indices.shape[1] * k.shape[3] * k.shape[4] * k.element_size()
    step = max(1, gather_bytes(q.device) // row_bytes)
    out = torch.empty_like(rows)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        chosen = indices[part].flatten()
        q_part = rows[part].unsqueeze(1)
        k_part, v_part = (x.index_select(0, chosen).view(len(q_part), 1, -1, x.shape[2]) for x in (k_rows, v_rows))
        mask = seen_tokens(indices[part] % k.shape[2], None if counts is None else counts[part], real_k, k.shape[3])
        out[part] = scaled_dot_product_attention(q_part, k_part, v_part, attn_mask=mask).squeeze(1)
    return out.view_as(q)


def gather_bytes(device: torch.device) -> int:
    """How much to copy at once: on a CPU what stays in the cache of its cores."""
    return CACHE_BYTES * torch.get_num_threads() if device.type == "cpu" else GATHER_BYTES


def seen_tokens(indices: Tensor, counts: Tensor | None, real_k: Tensor | None, chunk_tokens: int) -> Tensor | None:
    """Which tokens of kept chunks count: bool `[rows, 1, 1, n * tokens]`; None: all.

    Args:
        indices: the kept chunks `[rows, n]`.
        counts: how many of them are kept `[rows]`; None: all.
        real_k: tokens that are not padding `[chunks, tokens]`; None: all.
        chunk_tokens: tokens of a chunk.
    """
    seen = None if real_k is None else real_k[indices]
    if counts is not None:
        counted = (torch.arange(indices.shape[1], device=indices.device) < counts.unsqueeze(1)).unsqueeze(2)
        seen = counted.expand(-1, -1, chunk_tokens) if seen is None else seen & counted
    return None if seen is None else seen.flatten(1, 2).unsqueeze(1).unsqueeze(1)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, kept: Kept, real_k: Tensor | None) -> Tensor:
    """The same with flex_attention, whose kernel reads the kept chunks in place; arguments as `attend_gathered`."""
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
        except torch.OutOfMemoryError:
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


def find_backend(backend: Backend, q: Tensor, chunk_tokens_q: int, chunk_tokens_k: int) -> Attend:
    """The function that computes; see `block_sparse_attention`."""
    problem: str | None
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}.")
    if backend == "gather":
        return attend_gathered
    if backend == "auto" and not q.is_cuda:
        problem = f"flex is for CUDA, this is {q.device.type}"
    else:
        problem = flex_problem(q.device, q.dtype, q.shape[3], chunk_tokens_q, chunk_tokens_k)
    if problem and backend == "flex":
        raise ValueError(f"Block-sparse attention cannot use flex_attention: {problem}. Set backend to auto or gather.")
    if backend == "auto":
        say_once(f"LongCat Block-Sparse Attention uses {f'gather: {problem}' if problem else 'flex'}.")
    if problem:
        return attend_gathered
    return attend_flex if backend == "flex" else attend_flex_or_gathered


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
        except torch.OutOfMemoryError:
            raise
        except flex_errors() as error:
            return f"it {failure(error)}"
        expected = attend_gathered(q, k, v, kept, real)
        deviation = (found - expected).float().norm() / expected.float().norm()
        if not deviation < MAX_DEVIATION:
            return f"its result deviates by {deviation:.2g} from that of gather"
    return None
