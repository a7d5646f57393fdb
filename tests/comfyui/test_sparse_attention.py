"""Block-sparse attention against attention with a mask, its work and its memory; stages of the network in spans."""

import itertools
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from longcat_core.frames.geometry import TokenGrid
from longcat_core.network import spans
from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size
from longcat_core.sparse import attention as sparse_attention
from longcat_core.sparse import flex, gather
from longcat_core.sparse.attention import BLOCK_SPARSE, BlockSparse, block_sparse_attention
from longcat_core.sparse.chunks import Chunking, means

Sizes = tuple[int, int, int]
CHUNK = (4, 4, 4)
BACKENDS = ("flex", "gather")
FP32_NOISE = 2e-6
CASES: dict[str, tuple[Sizes, Sizes, Sizes, Sizes]] = {
    "whole chunks": ((4, 8, 8), (8, 8, 8), CHUNK, CHUNK),
    "odd grid": ((3, 5, 7), (3, 5, 7), CHUNK, CHUNK),
    "odd grids, condition in front": ((5, 6, 9), (7, 6, 9), CHUNK, CHUNK),
    "wider chunks": ((4, 5, 9), (4, 5, 9), (4, 4, 8), (4, 4, 8)),
    "different chunks": ((4, 5, 6), (6, 5, 6), (4, 4, 4), (2, 4, 4)),
}
COMPILED = ("odd grids, condition in front", "wider chunks")  # each takes ten seconds
RULES = {"half": (0.5, None), "most": (0.9375, None), "share": (None, 0.5), "both": (0.75, 0.5)}


def inputs(grid_q: Sizes, grid_k: Sizes, heads: int = 2, head_dim: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a batch of two videos."""
    generator = torch.Generator().manual_seed(0)
    n, m = (TokenGrid(*grid).num_tokens for grid in (grid_q, grid_k))
    return tuple(torch.randn(2, heads, size, head_dim, generator=generator) for size in (n, m, m))  # type: ignore[return-value] # of three


def chunk_numbers(grid: Sizes, chunk: Sizes) -> Tensor:
    """The chunk that each token of a grid is in, counted along width, then height, then time."""
    counts = [-(-size // step) for size, step in zip(grid, chunk, strict=True)]
    numbers = []
    for place in itertools.product(*(range(size) for size in grid)):
        t, h, w = (x // step for x, step in zip(place, chunk, strict=True))
        numbers.append((t * counts[1] + h) * counts[2] + w)
    return torch.tensor(numbers)


def by_mask(q: Tensor, k: Tensor, v: Tensor, case: tuple[Sizes, ...], rule: tuple[Any, Any]) -> Tensor:
    """The definition, token by token: means, scores, a mask over single keys, ordinary attention."""
    grid_q, grid_k, chunk_q, chunk_k = case
    of_q, of_k = chunk_numbers(grid_q, chunk_q), chunk_numbers(grid_k, chunk_k)
    q_means, k_means = (
        torch.stack([x[:, :, of == i].mean(2) for i in range(int(of.max()) + 1)], 2) for x, of in ((q, of_q), (k, of_k))
    )
    scores = q_means @ k_means.mT
    sparsity, cdf = rule
    order = scores.argsort(-1, descending=True)
    least = max(1, int((1 - sparsity) * scores.shape[-1])) if sparsity is not None else 1
    counts = torch.full(scores.shape[:-1], least)
    if cdf is not None:
        weights = (scores / q.shape[-1] ** 0.5).softmax(-1).gather(-1, order)
        counts = (weights.cumsum(-1) <= cdf).sum(-1).clamp(min=least)
    seen = torch.zeros_like(scores, dtype=torch.bool)
    for row, picks, count in zip(seen.flatten(0, 2), order.flatten(0, 2), counts.flatten(), strict=True):
        row[picks[:count]] = True
    return scaled_dot_product_attention(q, k, v, attn_mask=seen[:, :, of_q][..., of_k])


@pytest.mark.parametrize(
    ("case", "backend"), [*itertools.product(CASES, ["gather"]), *itertools.product(COMPILED, ["flex"])]
)
@torch.inference_mode()
def test_sparsity_0_is_dense(case: str, backend: Any) -> None:
    q, k, v = inputs(*CASES[case][:2])
    out = block_sparse_attention(q, k, v, *CASES[case], 0.0, None, backend)
    assert (out - scaled_dot_product_attention(q, k, v)).abs().max() < FP32_NOISE


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_attention_with_a_mask(case: str, rule: str) -> None:
    q, k, v = inputs(*CASES[case][:2])
    out = block_sparse_attention(q, k, v, *CASES[case], *RULES[rule], "gather")
    assert (out - by_mask(q, k, v, CASES[case], RULES[rule])).abs().max() < FP32_NOISE


@pytest.mark.parametrize("rule", RULES)
@torch.inference_mode()
def test_backends_attend_to_the_same_chunks(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []

    def remember(*args: Any) -> Any:
        chosen.append(select(*args))
        return chosen[-1]

    select = sparse_attention.select
    monkeypatch.setattr(sparse_attention, "select", remember)
    case = CASES["odd grids, condition in front"]
    q, k, v = inputs(*case[:2])
    flex, gather = (block_sparse_attention(q, k, v, *case, *RULES[rule], backend) for backend in BACKENDS)
    by_flex, by_gather = chosen[-2:]
    assert torch.equal(by_flex.indices, by_gather.indices)
    assert by_flex.counts is by_gather.counts is None or torch.equal(by_flex.counts, by_gather.counts)
    assert (flex - gather).abs().max() < FP32_NOISE


@torch.inference_mode()
def test_groups_and_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["odd grid"]
    q, k, v = inputs(*case[:2], heads=4)
    whole = block_sparse_attention(q, k, v, *case, 0.5, None, "gather")
    monkeypatch.setattr(sparse_attention, "GROUP_BYTES", 1)
    monkeypatch.setattr(gather, "gather_bytes", lambda device: 1)
    assert torch.equal(block_sparse_attention(q, k, v, *case, 0.5, None, "gather"), whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid_q": (3, 5, 8)}, r"There are 105 queries, but their grid \(3, 5, 8\) has 120 tokens"),
        ({"grid_k": (2, 5, 7)}, r"There are 105 keys, but their grid \(2, 5, 7\) has 70 tokens"),
        ({"chunk_q": (4, 0, 4)}, r"A chunk of queries is \(4, 0, 4\) tokens; each number must be at least 1"),
        ({"sparsity": 1.0}, "sparsity is 1.0; it is the share of keys that is left out"),
        ({"sparsity": None}, "needs sparsity"),
        ({"backend": "flash"}, "backend is 'flash'; it must be one of auto, flex, gather"),
        ({"chunk_q": (3, 3, 3), "backend": "flex"}, "chunks of 27 and 64 tokens are not multiples of 16. Set backend"),
    ],
)
def test_wrong_input_is_said(changes: dict, said: str) -> None:
    grid = (3, 5, 7)
    q, k, v = inputs(grid, grid)
    arguments = {"grid_q": grid, "grid_k": grid, "chunk_q": CHUNK, "chunk_k": CHUNK, "sparsity": 0.5, **changes}
    with pytest.raises(ValueError, match=said):
        block_sparse_attention(q, k, v, **arguments)


def test_auto_says_what_it_takes(caplog: pytest.LogCaptureFixture) -> None:
    q = torch.zeros(1, 1, 64, 16)
    flex.say_once.cache_clear()
    with caplog.at_level("INFO"):
        found = [sparse_attention.find_backend("auto", q, 64, 64) for _ in range(2)]
    assert found == 2 * [sparse_attention.attend_gathered]
    assert caplog.messages == ["LongCat Block-Sparse Attention uses gather: flex is for CUDA, this is cpu."]


def test_auto_says_why_flex_is_not_used(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CUDA device on which compiling fails; said once."""
    q = torch.zeros(1, 1, 64, 16)
    monkeypatch.setattr(sparse_attention, "flex_problem", lambda *args: "it fails with RuntimeError: a stand-in")
    monkeypatch.setattr(Tensor, "is_cuda", True, raising=False)
    with caplog.at_level("INFO"):
        found = [sparse_attention.find_backend("auto", q, 64, 64) for _ in range(2)]
    assert found == 2 * [sparse_attention.attend_gathered]
    assert caplog.messages == ["LongCat Block-Sparse Attention uses gather: it fails with RuntimeError: a stand-in."]


def test_a_kernel_that_fails_or_errs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Tensor:
        raise RuntimeError("no kernel image\nand more")

    for attend, head_dim, said in (
        (fail, 24, "it fails with RuntimeError: no kernel image"),
        (lambda q, *args: torch.ones_like(q), 40, "its result deviates by"),
    ):
        monkeypatch.setattr(flex, "attend_flex", attend)
        problem = flex.flex_problem(torch.device("cpu"), torch.float32, head_dim, 64, 64)
        assert problem.startswith(said)


@torch.inference_mode()
def test_many_sizes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own limit is 8, after which nothing new is compiled in that process."""
    calls = []

    def count(graph: Any, example: Any) -> Any:
        calls.append(graph)
        return graph.forward

    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False, backend=count)
    monkeypatch.setattr(flex, "compiled_flex", lambda device_type: compiled)
    for height in range(4, 16):
        grid = (2, height, 4)
        q, k, v = inputs(grid, grid)
        flex.attend_flex(*split(q, k, v, grid), None)
    assert len(calls) >= 10


def split(q: Tensor, k: Tensor, v: Tensor, grid: Sizes) -> tuple[Any, ...]:
    """Chunks of queries, keys and values, and those of the keys that are kept."""
    chunks = [Chunking(TokenGrid(*grid), TokenGrid(1, 1, 4)).split(x) for x in (q, k, v)]
    return *chunks, sparse_attention.select(*(means(x, None) for x in chunks[:2]), 0.5)


def test_auto_goes_on_where_flex_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def fail(*args: Any) -> Tensor:
        tries.append(args)
        raise torch._dynamo.exc.FailOnRecompileLimitHit("too many\nsizes")

    monkeypatch.setattr(flex, "attend_flex", fail)
    monkeypatch.setattr(flex, "FAILED", set())
    flex.say_once.cache_clear()
    grid = (2, 4, 4)
    chunks = split(*inputs(grid, grid), grid)
    with caplog.at_level("INFO"):
        found = [flex.attend_flex_or_gathered(*chunks, None) for _ in range(2)]
    assert torch.equal(found[0], sparse_attention.attend_gathered(*chunks, None))
    assert torch.equal(*found)
    assert len(tries) == 1
    assert caplog.messages == [
        "LongCat Block-Sparse Attention goes on with gather: flex fails with FailOnRecompileLimitHit: too many."
    ]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_what_is_not_flex_attentions_fault_is_not_taken_for_it(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory, or a fault that the card reports of whatever ran on it."""

    def fail(*args: Any) -> Tensor:
        raise error

    monkeypatch.setattr(flex, "attend_flex", fail)
    grid = (2, 4, 4)
    with pytest.raises(error):
        flex.attend_flex_or_gathered(*split(*inputs(grid, grid), grid), None)
    for _ in range(2):
        with pytest.raises(error):
            flex.flex_problem(torch.device("cpu"), torch.float32, 56, 64, 64)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.inference_mode()
def test_compiled_models_attend_to_the_same_chunks(backend: Any) -> None:
    """Inside the graph of a compiled model flex_attention alone would be dense."""
    module = network(hidden=64)
    x, text = torch.randn(1, 16, 4, 16, 16), torch.randn(1, 16, 32)
    options = {BLOCK_SPARSE: BlockSparse(0.9, backend=backend)}
    plain = module(x, torch.tensor([700.0]), text, transformer_options=options)
    compiled = torch.compile(module, backend="eager")(x, torch.tensor([700.0]), text, transformer_options=options)
    dense = module(x, torch.tensor([700.0]), text)
    assert (compiled - plain).abs().max() < 1e-4
    assert (compiled - dense).abs().max() > 1e-2


@torch.inference_mode()
def test_only_kept_chunks_cost_work() -> None:
    """Counted by torch: two products of 64 queries with each kept key, and the scores of the chunks."""
    grid, heads, head_dim, sparsity = (8, 16, 16), 2, 32, 0.9375
    q, k, v = inputs(grid, grid, heads, head_dim)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        block_sparse_attention(q, k, v, grid, grid, CHUNK, CHUNK, sparsity, None, "gather")
    tokens, chunks = TokenGrid(*grid).num_tokens, TokenGrid(*grid).num_tokens // 64
    attention, scores = 4 * tokens * (chunks // 16) * 64 * head_dim, 2 * chunks**2 * head_dim
    assert counter.get_total_flops() == 2 * heads * (attention + scores)


@torch.inference_mode()
def test_memory_is_bounded(report: list[str]) -> None:
    """What it needs besides its inputs and its output grows with the tokens of one head, not with their square."""
    heads, head_dim, peaks = 4, 64, {}
    for frames in (4, 16, 64):
        grid = (frames, 32, 32)
        q, k, v = (torch.randn(1, heads, 1024 * frames, head_dim) for _ in range(3))
        with LiveBytes() as memory:
            block_sparse_attention(q, k, v, grid, grid, CHUNK, CHUNK, 0.9375, None, "gather")
        peaks[1024 * frames] = memory.peak - q.nbytes
        copies = min(4 * q.nbytes, sparse_attention.GROUP_BYTES)
        chunks = (16 * frames) ** 2 * heads * 4
        assert peaks[1024 * frames] <= 2 * copies + 3 * chunks + 2 * gather.gather_bytes(q.device)
    assert peaks[65536] <= 1.1 * 16 * peaks[4096]
    said = ", ".join(f"{tokens:,} tokens {peak / 2**20:.0f} MiB" for tokens, peak in peaks.items())
    report.append(
        f"block-sparse attention (gather, {heads} heads x {head_dim}, fp32), memory besides q, k, v, out: {said}"
    )


def network(hidden: int = 256, heads: int = 2, dtype: torch.dtype = torch.float32) -> LongCatVideoTransformer:
    """A random network of two blocks."""
    torch.manual_seed(0)
    made = LongCatVideoTransformer(
        hidden_size=hidden,
        num_heads=heads,
        depth=2,
        ffn_hidden_size=ffn_hidden_size(hidden),
        caption_channels=32,
        dtype=dtype,
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("dtype", "num_cond_latents", "batch", "sparse"),
    [*itertools.product((torch.float32,), (0, 1, 3), (1, 2), (False, True)), (torch.bfloat16, 1, 1, True)],
)
@torch.inference_mode()
def test_spans_change_no_bit(
    dtype: torch.dtype, num_cond_latents: int, batch: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = network(dtype=dtype)
    x, text = torch.randn(batch, 16, 7, 32, 48, dtype=dtype), torch.randn(batch, 16, 32, dtype=dtype)
    timestep = torch.full((batch, 7), 700.0)
    timestep[:, :num_cond_latents] = 0
    options = {BLOCK_SPARSE: BlockSparse(0.75, backend="gather")} if sparse else {}
    outputs = []
    for limit in (10**9, 1000):
        monkeypatch.setattr(spans, "MAX_SPAN_TOKENS", limit)
        outputs.append(module(x, timestep, text, None, num_cond_latents, options))
    assert torch.equal(*outputs)


@torch.inference_mode()
def test_memory_of_a_call_is_as_computed(monkeypatch: pytest.MonkeyPatch, report: list[str]) -> None:
    """The estimate that ComfyUI plans with is above the peak, and not far above it."""
    hidden, dtype = 1024, torch.float32
    module = network(hidden, 8, dtype)
    x, text = torch.randn(1, 16, 8, 16, 32, dtype=dtype), torch.randn(1, 16, 32, dtype=dtype)
    tokens = 8 * 8 * 16
    peaks, estimates = {}, {}
    for limit in (tokens, tokens // 8):
        monkeypatch.setattr(spans, "MAX_SPAN_TOKENS", limit)
        with LiveBytes() as memory:
            module(x, torch.tensor([700.0]), text)
        peaks[limit], estimates[limit] = memory.peak, spans.activation_bytes(tokens, hidden, dtype.itemsize)
        assert 0.5 * estimates[limit] < peaks[limit] <= estimates[limit]
    copy = tokens * hidden * dtype.itemsize
    said = ", ".join(f"{peak / copy:.1f} of {estimates[limit] / copy:.0f}" for limit, peak in peaks.items())
    report.append(f"activations of a call in copies of its tokens, {dtype}: whole and in 8 spans {said} reserved")
    assert peaks[tokens] < 11 * copy
    assert peaks[tokens // 8] < 8.5 * copy
