"""Block-sparse attention: queries attend to the chunks of keys that `chunks.select` kept.

Two backends give the same numbers (to rounding) from the same selection:

    flex    `flex.py`: PyTorch's flex_attention, on CUDA one kernel that skips the chunks that are not kept
    gather  `gather.py`: copies the kept keys together and runs ordinary attention on them; runs everywhere

Heads are independent of each other, and so many of them are computed at once as fit `GROUP_BYTES`: at 168,960 tokens
(720p, 30 frames per second) a copy of all of them would take gigabytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..frames.geometry import TokenGrid
from .chunks import Chunking, Kept, check_sparsity, means, select
from .flex import attend_flex, attend_flex_or_gathered, flex_problem, say_once
from .gather import attend_gathered

Backend = Literal["auto", "flex", "gather"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Attend = Callable[[Tensor, Tensor, Tensor, Kept, Tensor | None], Tensor]

BLOCK_SPARSE = "longcat_block_sparse"
"""The key of `transformer_options` that a `BlockSparse` is under."""
DEFAULT_SPARSITY = 0.9375
DEFAULT_CHUNK = TokenGrid(4, 4, 4)
GROUP_BYTES = 2**28


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


def find_backend(backend: Backend, q: Tensor, chunk_tokens_q: int, chunk_tokens_k: int) -> Attend:
    """The function that computes; see `block_sparse_attention`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}.")
    if backend == "gather":
        return attend_gathered
    problem: str | None = f"flex is for CUDA, this is {q.device.type}"
    if backend == "flex" or q.is_cuda:
        problem = flex_problem(q.device, q.dtype, q.shape[3], chunk_tokens_q, chunk_tokens_k)
    if backend == "flex" and problem:
        raise ValueError(f"Block-sparse attention cannot use flex_attention: {problem}. Set backend to auto or gather.")
    if backend == "flex":
        return attend_flex
    say_once(f"LongCat Block-Sparse Attention uses {f'gather: {problem}' if problem else 'flex'}.")
    return attend_gathered if problem else attend_flex_or_gathered
