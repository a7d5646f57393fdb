"""What makes refinement affordable: block-sparse attention and stages in spans of frames, measured.

On a CPU the work is measured on one thread, in its processor time, which other programs on the machine hardly change.
"""

from __future__ import annotations

import functools
import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from host.process import say
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from longcat_core.frames.geometry import TokenGrid
from longcat_core.network import spans
from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size
from longcat_core.sparse import attention as sparse_attention
from longcat_core.sparse.attention import BLOCK_SPARSE, DEFAULT_CHUNK, DEFAULT_SPARSITY, BlockSparse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEAD_DIM = 128
CPU_GRID, CPU_HEADS = TokenGrid(16, 48, 48), 1
COUNTED_GRID = TokenGrid(8, 16, 16)
CUDA_GRIDS = (TokenGrid(24, 30, 52), TokenGrid(24, 44, 80), TokenGrid(48, 44, 80))
CUDA_HEADS = 32
SPAN_LATENT, SPAN_HIDDEN, SPAN_HEADS, SPAN_DEPTH = (16, 128, 128), 512, 4, 2
UNLIMITED = 2**62
MIN_EFFICIENCY = 0.5


@dataclass(frozen=True)
class SparseWork:
    """Seconds of every repeat of dense and of block-sparse attention, neighbouring in time, and their operations."""

    num_tokens: int
    dense: Sequence[float]
    sparse: Sequence[float]
    flops_dense: int
    flops_sparse: int

    @property
    def flops_saved(self) -> float:
        """Operations of dense attention over those of block-sparse attention."""
        return self.flops_dense / self.flops_sparse

    @property
    def speed_ups(self) -> list[float]:
        """One per repeat."""
        return [dense / sparse for dense, sparse in zip(self.dense, self.sparse, strict=True)]

    @property
    def efficiencies(self) -> list[float]:
        """Of every repeat, the speed-up over that of the operations."""
        return [speed_up / self.flops_saved for speed_up in self.speed_ups]


class WrongFlopsError(Exception):
    """The formula for floating-point operations counts other ones than torch; the message gives the numbers."""


def sparse_flops(grid: TokenGrid, heads: int) -> int:
    """Floating-point operations of block-sparse attention, the selection of chunks included."""
    chunks = grid.num_tokens // DEFAULT_CHUNK.num_tokens
    kept = int((1 - DEFAULT_SPARSITY) * chunks) * DEFAULT_CHUNK.num_tokens
    return 2 * heads * HEAD_DIM * (2 * grid.num_tokens * kept + chunks**2)


def check_flops() -> None:
    """Raise WrongFlopsError if torch counts other operations than the formula, at a size that is counted quickly."""
    q = torch.randn(1, 1, COUNTED_GRID.num_tokens, HEAD_DIM)
    # torch counts every attention kernel but the CPU's; the plain one consists of matrix products, which it counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        BlockSparse(backend="gather")(q, q, q, COUNTED_GRID)
    if counter.get_total_flops() != sparse_flops(COUNTED_GRID, 1):
        raise WrongFlopsError(f"The formula counts {sparse_flops(COUNTED_GRID, 1)}, torch {counter.get_total_flops()}.")


def measure_work(repeats: int) -> SparseWork:
    """Time dense and gathered block-sparse attention in turn, on one thread of the CPU in fp32.

    Raises:
        WrongFlopsError: nothing could be said about the times.
    """
    check_flops()
    q, k, v = (torch.randn(1, CPU_HEADS, CPU_GRID.num_tokens, HEAD_DIM) for _ in range(3))
    sparse = BlockSparse(backend="gather")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dense_times: list[float] = []
    sparse_times: list[float] = []
    calls = (
        (dense_times, functools.partial(scaled_dot_product_attention, q, k, v)),
        (sparse_times, functools.partial(sparse, q, k, v, CPU_GRID)),
    )
    for repeat in range(repeats):
        say(f"block-sparse attention: {repeat + 1}/{repeats}")
        for times, call in calls:
            started = time.process_time()
            call()
            times.append(time.process_time() - started)
    torch.set_num_threads(num_threads)
    flops_dense = 4 * CPU_HEADS * HEAD_DIM * CPU_GRID.num_tokens**2
    flops_sparse = sparse_flops(CPU_GRID, CPU_HEADS)
    return SparseWork(CPU_GRID.num_tokens, dense_times, sparse_times, flops_dense, flops_sparse)


class CudaRow(NamedTuple):
    """One attention on a graphics card."""

    num_tokens: int
    name: str
    milliseconds: float
    tflops: float
    """Of the operations on kept chunks."""
    error: float
    """Against the same attention in fp32, relative L2 of one head; 0 for the dense one."""


def measure_cuda(repeats: int) -> list[CudaRow]:
    """Dense attention and every backend at three sizes, 32 heads x 128 in bf16."""
    rows = []
    for grid in CUDA_GRIDS:
        shape = (1, CUDA_HEADS, grid.num_tokens, HEAD_DIM)
        q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        dense = _cuda_milliseconds(functools.partial(scaled_dot_product_attention, q, k, v), repeats)
        flops = 4 * CUDA_HEADS * HEAD_DIM * grid.num_tokens**2
        rows.append(CudaRow(grid.num_tokens, "dense", dense, flops / dense / 1e9, 0.0))
        exact = BlockSparse(backend="gather")(*(x[:, :1].float() for x in (q, k, v)), grid)
        for backend in sparse_attention.BACKENDS:
            sparse = BlockSparse(backend=backend)
            found = sparse(q, k, v, grid)[:, :1].float()
            taken = _cuda_milliseconds(functools.partial(sparse, q, k, v, grid), repeats)
            error = ((found - exact).norm() / exact.norm()).item()
            tflops = sparse_flops(grid, CUDA_HEADS) / taken / 1e9
            rows.append(CudaRow(grid.num_tokens, backend, taken, tflops, error))
    return rows


def _cuda_milliseconds(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times[1:])[repeats // 2]


def forward_in_spans(limit: int) -> Callable[[], str]:
    """One forward of 65,536 tokens with spans of at most `limit`, as a function that returns a digest of its output."""
    torch.manual_seed(0)
    network = LongCatVideoTransformer(
        hidden_size=SPAN_HIDDEN,
        num_heads=SPAN_HEADS,
        depth=SPAN_DEPTH,
        ffn_hidden_size=ffn_hidden_size(SPAN_HIDDEN),
        caption_channels=64,
        dtype=torch.float32,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    network.requires_grad_(False)
    latent, text = torch.randn(1, 16, *SPAN_LATENT), torch.randn(1, 64, 64)
    options = {BLOCK_SPARSE: BlockSparse(backend="gather")}

    def forward() -> str:
        spans.MAX_SPAN_TOKENS = limit
        out = network(latent, torch.tensor([500.0]), text, transformer_options=options)
        return hashlib.sha256(out.numpy()).hexdigest()

    return forward
