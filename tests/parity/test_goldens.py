"""The pack against the original implementation, case by case."""

from collections.abc import Iterator
from typing import Any

import comfy.ops
import pytest
import torch
from adapter import Adapter
from goldens import (
    BF16_SAMPLER_TOLERANCE,
    EXACT,
    ROOT,
    Case,
    assert_bf16,
    assert_fp32,
    cases,
    relative_l2,
)
from network import Network
from refine_inputs import refine_frames, refine_start
from torch import Tensor
from toy_network import ToyNetwork

from longcat_core.frames.geometry import TokenGrid, latent_frames
from longcat_core.sparse.attention import BLOCK_SPARSE, Backend, BlockSparse, block_sparse_attention
from longcat_core.sparse.chunks import Chunking

# Without dit_return_kv: condition frames that are cached and see the text, which no pipeline of the original does.
NETWORK_CASES = [case for name in ("dit_t2v", "dit_i2v", "dit_vc") for case in cases(name, ("dit",))]
BACKENDS = ("flex", "gather")
PIECES = tuple({case.spec["kind"] for case in cases("pieces")})
OPERATIONS = {"disable_weight_init": comfy.ops.disable_weight_init, "manual_cast": comfy.ops.manual_cast}


REFINE_CASES = [case for case in cases("samplers", ("sampler",)) if case.args["loop"] == "refine"]


def each(selected: list[Case]) -> pytest.MarkDecorator:
    """One test per case."""
    assert selected
    return pytest.mark.parametrize("case", selected, ids=lambda case: case.id)


@pytest.fixture(scope="module")
def worst(report: list[str]) -> Iterator[dict[str, tuple[float, str]]]:
    """Largest deviation so far, in multiples of the original's own noise; reported at the end."""
    found: dict[str, tuple[float, str]] = {}
    yield found
    for rule, (multiple, case_id) in sorted(found.items()):
        report.append(f"worst {rule} deviation from the original: {multiple:.2f}x its own noise ({case_id})")
    assert found.get("fp32", (0.0, ""))[0] <= 1.5


def note(worst: dict[str, tuple[float, str]], rule: str, multiple: float, case: Case) -> None:
    """Keep the largest."""
    worst[rule] = max(worst.get(rule, (0.0, "")), (multiple, case.id))


def call(network: Network, case: Case, **options: Any) -> Any:
    """The network on the inputs of a case."""
    i = case.inputs()
    hidden_states, text = (i[name].to(case.dtype) for name in ("hidden_states", "encoder_hidden_states"))
    return network(hidden_states, i["timestep"], text, i["encoder_attention_mask"], **options)


@each(NETWORK_CASES)
@pytest.mark.parametrize("operations", OPERATIONS)
@torch.no_grad()
def test_network(case: Case, operations: str, worst: dict) -> None:
    network = Adapter(OPERATIONS[operations]).dit(case.config, case.state, case.dtype, [])
    out = call(network, case, num_cond_latents=case.args["num_cond_latents"])
    assert out.dtype == torch.float32
    if case.dtype == torch.bfloat16:
        note(worst, "bf16", assert_bf16(out, case.output("out64"), case.noise("out")), case)
    else:
        note(worst, "fp32", assert_fp32(out, case.output("out"), case.noise("out")), case)


@each(cases("lora"))
@torch.inference_mode()
def test_network_with_loras(case: Case, worst: dict) -> None:
    loras = [(ROOT / f"lora_{name}.safetensors", strength) for name, strength in case.args.get("loras", [])]
    network = Adapter().dit(case.config, case.state, case.dtype, loras)
    out = call(network, case, num_cond_latents=case.args["num_cond_latents"])
    note(worst, "fp32", assert_fp32(out, case.output("out"), case.noise("out")), case)


@each(cases("dit_vc", ("dit_cache_pass",)))
@torch.no_grad()
def test_condition_pass(case: Case, worst: dict) -> None:
    adapter = Adapter()
    network = adapter.dit(case.config, case.state, case.dtype, [])
    out, cache = call(network, case, return_kv=True, skip_crs_attn=True)
    found = {"out": out}
    for index in range(len(network.module.blocks)):
        found[f"k{index}"], found[f"v{index}"] = adapter.cache_kv(cache, index)
    for name in case.spec["outputs"]:
        note(worst, "fp32", assert_fp32(found[name], case.output(name), case.noise(name)), case)


@each(cases("dit_vc", ("dit_with_cache",)))
@torch.no_grad()
def test_network_with_cache(case: Case, worst: dict) -> None:
    adapter = Adapter()
    network = adapter.dit(case.config, case.state, case.dtype, [])
    _, cache = call(network, case.sibling(case.args["cache_from"]), return_kv=True, skip_crs_attn=True)
    if "cache_rows" in case.args:
        cache = adapter.cache_rows(cache, *map(int, case.args["cache_rows"].split(":")))
    out = call(network, case, kv_cache=cache)
    note(worst, "fp32", assert_fp32(out, case.output("out"), case.noise("out")), case)


@each([case for case in NETWORK_CASES if case.args["num_cond_latents"] and case.inputs()["timestep"].ndim == 2])
@torch.no_grad()
def test_cache_changes_nothing(case: Case) -> None:
    n, i = case.args["num_cond_latents"], case.inputs()
    x, text = i["hidden_states"].to(case.dtype), i["encoder_hidden_states"].to(case.dtype)
    network = Adapter().dit(case.config, case.state, case.dtype, [])
    whole = call(network, case, num_cond_latents=n)[:, :, n:]
    cache = network.cached(x[:, :, :n], text)
    behind = network(x[:, :, n:], i["timestep"][:, n:], text, i["encoder_attention_mask"], kv_cache=cache)
    assert relative_l2(behind, whole) <= case.noise("out")["rel_l2"]


@each(cases("bsa", ("bsa",)))
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_block_sparse_attention(case: Case, backend: Backend, worst: dict) -> None:
    """Where the original keeps no block its output is 0; the pack then keeps the best one."""
    i, a = case.inputs(), case.args
    q, k, v = i["q"], i["k"], i["v"]
    sizes = [a[name] for name in ("latent_shape_q", "latent_shape_k", "chunk_3d_shape_q", "chunk_3d_shape_k")]
    out = block_sparse_attention(q, k, v, *sizes, a["sparsity"], a["cdf_threshold"], backend)
    queries, keys = (Chunking(TokenGrid(*grid), TokenGrid(*chunk)) for grid, chunk in (sizes[::2], sizes[1::2]))
    mask = case.output("block_mask").bool()
    has_blocks = queries.join(mask.any(-1)[..., None, None].expand(-1, -1, -1, queries.chunk.num_tokens, 1))
    multiple = assert_fp32(out * has_blocks, case.output("out"), case.noise("out"))
    note(worst, f"fp32 block-sparse ({backend})", multiple, case)

    best = case.output("block_score").argmax(-1, keepdim=True)
    seen = torch.where(mask.any(-1, keepdim=True), mask, torch.zeros_like(mask).scatter(-1, best, 1))
    dense = dense_attention(*map(queries.split, (q,)), *map(keys.split, (k, v)), seen)
    assert_fp32(out, queries.join(dense), case.noise("out"))


def dense_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Chunks `[B, heads, chunks, tokens, D]` attending to the chunks `seen` `[B, heads, chunks, chunks]`, by a mask."""
    mask = seen.repeat_interleave(q.shape[3], 2).repeat_interleave(k.shape[3], 3)
    flat = [x.flatten(2, 3) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=mask).view_as(q)


@each(cases("bsa", ("dit",)))
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_network_with_block_sparse_attention(case: Case, backend: Backend, worst: dict) -> None:
    params = case.config["bsa_params"]
    sparse = BlockSparse(params["sparsity"], None, TokenGrid(*params["chunk_3d_shape_q"]), backend)
    network = Adapter().dit(case.config, case.state, case.dtype, [])
    network.transformer_options = {BLOCK_SPARSE: sparse}
    out = call(network, case, num_cond_latents=case.args["num_cond_latents"])
    multiple = assert_fp32(out, case.output("out"), case.noise("out"))
    note(worst, f"fp32 block-sparse ({backend})", multiple, case)


@each(cases("pieces", PIECES))
@torch.no_grad()
def test_piece(case: Case, worst: dict) -> None:
    out = Adapter().piece(case.spec["kind"], case.id, case.config, case.state, case.inputs(), case.args)
    note(worst, "fp32", assert_fp32(out, case.output("out"), case.noise("out")), case)


@each(cases("rope_3d", ("rope",)))
def test_rope(case: Case, worst: dict) -> None:
    i = case.inputs()
    for name, out in zip("qk", Adapter().rope(i["q"], i["k"], case.args["grid"], case.args["head_dim"]), strict=True):
        note(worst, "fp32", assert_fp32(out, case.output(name), case.noise(name)), case)


@each(cases("rope_3d", ("rope_rows",)))
def test_rope_of_full_size_grids(case: Case, worst: dict) -> None:
    i, (frames, height, width) = case.inputs(), case.args["grid"]
    x = i["u"].expand(1, 1, frames * height * width, case.args["head_dim"])
    out, _ = Adapter().rope(x, x, case.args["grid"], case.args["head_dim"])
    note(worst, "fp32", assert_fp32(out[:, :, i["rows"].long()], case.output("q"), case.noise("q")), case)


@each(cases("samplers", ("schedule",)))
def test_schedule(case: Case) -> None:
    a = case.args
    timesteps, sigmas = Adapter().schedule(a["N"], a["shift"], a["schedule"], a["t_thresh"])
    assert_fp32(timesteps, case.output("timesteps"), EXACT)
    assert_fp32(sigmas, case.output("sigmas"), EXACT)
    assert torch.equal(timesteps.bfloat16().float(), case.output("timesteps_as_seen_by_bf16_dit").float())


@each(REFINE_CASES)
def test_refine_inputs(case: Case) -> None:
    i, a = case.inputs(), case.args
    latents, num_cond_latents = refine_start(i, a)
    assert_fp32(latents, case.output("latents_in"), EXACT)
    assert refine_frames(i, a).front == a["num_cond_frames_added"]
    assert num_cond_latents == (latent_frames(a["num_cond_frames_padded"]) if a["num_cond_frames_padded"] else 0)


@each(cases("samplers", ("sampler",)))
def test_loop_with_stand_in_network(case: Case, worst: dict) -> None:
    i = case.inputs()
    network = ToyNetwork(i["P"], case.dtype)
    found = Adapter().sample(case.args["loop"], network, i, case.args)
    first, last = case.output("dit_timestep_first"), case.output("dit_timestep_last")
    if case.dtype == torch.bfloat16:
        assert relative_l2(found["final"], case.output("final")) <= BF16_SAMPLER_TOLERANCE
        assert torch.equal(network.timesteps[0].double(), first.double())
        assert torch.equal(network.timesteps[-1].double(), last.double())
    else:
        note(worst, "fp32", assert_fp32(found["final"], case.output("final"), case.noise("final")), case)
        assert_fp32(network.timesteps[0], first, EXACT)
        assert_fp32(network.timesteps[-1], last, EXACT)
    if "st_star" in found:
        tolerance = 1e-3 if case.dtype == torch.bfloat16 else 1e-5
        assert relative_l2(found["st_star"].flatten(), case.output("st_star").flatten()) <= tolerance


@each(cases("loops"))
def test_loop_through_comfyui(case: Case, worst: dict) -> None:
    network = Adapter().dit(case.config, case.state, case.dtype, [])
    found = Adapter().sample(case.args["loop"], network, case.inputs(), case.args)
    note(worst, "fp32", assert_fp32(found["final"], case.output("final"), case.noise("final")), case)
    assert_fp32(found["sigmas"], case.output("sigmas"), EXACT)
