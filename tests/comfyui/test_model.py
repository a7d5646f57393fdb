"""The network inside ComfyUI: precision, padding, condition frames, hooks."""

from types import SimpleNamespace
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.ops
import pytest
import torch
from adapter import build_network
from goldens import cases, load
from torch import Tensor

from longcat_core.frames.latents import leading_clean_frames, leading_window_frames
from longcat_core.network.dit import LongCatVideoTransformer, gated_residual, modulate
from longcat_core.weights.layouts import tensor_names

CASE = cases("dit_t2v")[2]
ISLANDS = ("t_embedder.mlp.0", "blocks.0.adaLN_modulation.1", "final_layer.adaLN_modulation.1", "final_layer.linear")
REST = ("y_embedder.y_proj.0", "blocks.0.attn.qkv", "blocks.0.cross_attn.kv_linear", "blocks.0.ffn.w1")


@pytest.fixture
def network() -> LongCatVideoTransformer:
    """The golden network in fp32."""
    return build_network(CASE.config, CASE.state, torch.float32, comfy.ops.disable_weight_init)


def inputs(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (8, 12)) -> dict[str, Any]:
    """Arguments of a forward."""
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 16, 3, *size, generator=generator), torch.randn(1, 9, 64, generator=generator)
    return {"x": x.to(dtype), "timestep": torch.tensor([700.0]), "context": context.to(dtype)}


def test_defaults_are_the_released_sizes() -> None:
    """1022 tensors and 13.58 billion parameters, as the released checkpoint has."""
    released = LongCatVideoTransformer(dtype=torch.bfloat16, device=torch.device("meta"))
    assert released.state_dict().keys() == tensor_names(48)
    assert len(released.state_dict()) == 1022
    assert round(sum(p.numel() for p in released.parameters()) / 1e9, 2) == 13.58


OPERATIONS = {
    "disable_weight_init": comfy.ops.disable_weight_init,
    "manual_cast": comfy.ops.manual_cast,
    "mixed_precision": comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.bfloat16),
}


@pytest.mark.parametrize("operations", OPERATIONS)
@torch.no_grad()
def test_fp32_islands_in_a_bf16_model(operations: str) -> None:
    """The numbers of the first two are checked against the original in tests/parity."""
    network = build_network(CASE.config, CASE.state, torch.bfloat16, OPERATIONS[operations])
    seen: dict[str, set] = {}

    def watch(name: str) -> Any:
        return lambda module, args, out: seen.setdefault(name, set()).update((args[0].dtype, out.dtype))

    for name in ISLANDS + REST:
        network.get_submodule(name).register_forward_hook(watch(name))
    assert network(**inputs(torch.bfloat16)).dtype == torch.float32
    assert seen == {name: {torch.float32} for name in ISLANDS} | {name: {torch.bfloat16} for name in REST}


def rounded_differently(found: Tensor, expected: Tensor) -> float:
    """Share of bf16 values that differ; fp32 arithmetic in another order flips a few in a thousand."""
    assert found.dtype == torch.bfloat16
    return (found != expected.bfloat16()).float().mean().item()


def test_modulation_and_gates_round_only_at_the_end() -> None:
    generator = torch.Generator().manual_seed(0)
    x, branch = (torch.randn(2, 24, 64, generator=generator).bfloat16() for _ in range(2))
    shift, scale = (torch.randn(2, 3, 1, 64, generator=generator) for _ in range(2))
    frames = x.float().view(2, 3, 8, 64)
    normed = torch.nn.functional.layer_norm(frames, (64,), eps=1e-6)
    assert rounded_differently(modulate(x, shift, scale), (normed * (1 + scale) + shift).view(x.shape)) < 0.01
    expected = (frames + scale * branch.float().view(frames.shape)).view(x.shape)
    assert rounded_differently(gated_residual(x, scale, branch), expected) < 0.01


@torch.no_grad()
def test_final_layer_does_not_round() -> None:
    network = build_network(CASE.config, CASE.state, torch.bfloat16, comfy.ops.disable_weight_init)
    x, t_emb = torch.randn(1, 12, 128).bfloat16(), torch.randn(1, 3, 64)
    assert torch.equal(network.final_layer(x, t_emb), network.final_layer(x.float(), t_emb))


@torch.no_grad()
def test_fp8_weights_compute_in_bf16_with_fp32_islands() -> None:
    network = build_network(CASE.config, CASE.state, torch.float8_e4m3fn, comfy.ops.manual_cast)
    exact = build_network(CASE.config, CASE.state, torch.float32, comfy.ops.disable_weight_init)
    found, expected = network(**inputs(torch.bfloat16)), exact(**inputs())
    assert found.dtype == torch.float32
    assert ((found - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("size", [(8, 11), (7, 12), (5, 7), (1, 1)])
@torch.no_grad()
def test_odd_sizes_are_padded_with_zeros_and_cropped(network: LongCatVideoTransformer, size: tuple[int, int]) -> None:
    arguments = inputs(size=size)
    height, width = size
    padded = torch.nn.functional.pad(arguments["x"], (0, width % 2, 0, height % 2))
    found = network(**arguments)
    assert found.shape == arguments["x"].shape
    assert torch.equal(found, network(**{**arguments, "x": padded})[..., :height, :width])


@torch.no_grad()
def test_condition_frames_ignore_the_text_and_the_other_frames(network: LongCatVideoTransformer) -> None:
    arguments = inputs() | {"num_cond_latents": 1, "timestep": torch.tensor([[0.0, 700.0, 700.0]])}
    changed = arguments | {"context": arguments["context"] + 1, "x": arguments["x"].clone()}
    changed["x"][:, :, 1:] += 1
    before, after = network(**arguments), network(**changed)
    assert torch.equal(before[:, :, :1], after[:, :, :1])
    assert not torch.allclose(before[:, :, 1:], after[:, :, 1:])


@torch.no_grad()
def test_block_replacements_see_every_block(network: LongCatVideoTransformer) -> None:
    """The hook that core's skip-layer guidance uses."""
    seen = []

    def skip(args: dict, extra: dict) -> dict:
        options = args["transformer_options"]
        seen.append((options["block_index"], options["total_blocks"], options["grid_sizes"], args["img"].shape[1]))
        return {"img": args["img"]}

    def keep(args: dict, extra: dict) -> dict:
        return extra["original_block"](args)

    plain = network(**inputs())
    kept = {"patches_replace": {"dit": {("double_block", 1): keep}}}
    skipped = {"patches_replace": {"dit": {("double_block", 1): skip}}}
    assert torch.equal(network(**inputs(), transformer_options=kept), plain)
    assert not torch.allclose(network(**inputs(), transformer_options=skipped), plain)
    assert seen == [(1, 2, (3, 4, 6), 3 * 4 * 6)]


@torch.no_grad()
def test_attention_override_reaches_every_attention(network: LongCatVideoTransformer) -> None:
    calls = []

    def override(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0].shape[2])
        return function(*args, **kwargs)

    network(**inputs(), transformer_options={"optimized_attention_override": override})
    assert calls == [72] * 4


@torch.no_grad()
def test_rope_options_move_the_positions(network: LongCatVideoTransformer) -> None:
    plain = network(**inputs())
    shifted = network(**inputs(), transformer_options={"rope_options": {"shift_t": 5.0, "shift_y": 2.0}})
    stretched = network(**inputs(), transformer_options={"rope_options": {"scale_x": 2.0}})
    # Attention depends on relative positions only.
    torch.testing.assert_close(shifted, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(stretched, plain, atol=1e-3)


@pytest.mark.parametrize(("kept", "count"), [([], 0), ([0], 1), ([0, 1], 2), ([1], 0), ([0, 2], 1), ([0, 1, 2, 3], 0)])
def test_condition_frames_of_a_mask(kept: list[int], count: int) -> None:
    mask = torch.ones(1, 16, 4, 2, 2)
    mask[:, :, kept] = 0
    assert leading_clean_frames(mask) == count


def test_partly_masked_frames_are_not_conditions() -> None:
    mask = torch.ones(1, 16, 4, 2, 2)
    mask[:, :, 0, :, 1] = 0
    assert leading_clean_frames(mask) == 0
    assert leading_clean_frames(None) == 0


@pytest.mark.parametrize(
    ("window", "count"), [([0, 1, 2, 3], 2), ([1, 2, 3, 4], 1), ([4, 5, 6], 0), ([0, 1], 0), ([0, 7, 8], 1)]
)
def test_condition_frames_of_a_context_window(window: list[int], count: int) -> None:
    assert leading_window_frames(window, 2) == count


def in_a_run() -> Any:
    """What core sets while a model samples; without LoRAs."""
    return SimpleNamespace(parent=None, get_injections=lambda key: (), load_device=torch.device("cpu"))


def test_model_passes_timesteps_and_conditions_of_each_frame() -> None:
    import comfy.sd

    model = comfy.sd.load_diffusion_model_state_dict(load("models/hd64.safetensors").copy()).model
    mask = torch.ones(1, 16, 5, 4, 4)
    mask[:, :, :2] = 0
    model.current_patcher = in_a_run()
    conds = model.extra_conds(cross_attn=torch.ones(1, 7, 64), denoise_mask=mask)
    assert conds["num_cond_latents"].cond == 2
    assert conds["c_crossattn"].cond.shape == (1, 512, 64)
    assert conds["context_mask"].cond.sum() == 7
    timesteps = model.process_timestep(torch.tensor([900.0]), torch.empty(1, 16, 5, 4, 4), num_cond_latents=2)
    assert timesteps.tolist() == [[0.0, 0.0, 900.0, 900.0, 900.0]]

    noise, latent = torch.randn(1, 16, 5, 4, 4), torch.randn(1, 16, 5, 4, 4)
    under_mask = model.scale_latent_inpaint(sigma=torch.tensor([0.5]), noise=noise, latent_image=latent)
    assert torch.equal(under_mask[:, :, :2], latent[:, :, :2])
    torch.testing.assert_close(under_mask[:, :, 2:], 0.5 * noise[:, :, 2:] + 0.5 * latent[:, :, 2:])
    model.current_patcher = None
    under_mask = model.scale_latent_inpaint(sigma=torch.tensor([0.5]), noise=noise, latent_image=latent)
    torch.testing.assert_close(under_mask, 0.5 * noise + 0.5 * latent)

    window = SimpleNamespace(index_list=[3, 4], causal_anchor_index=0)
    resized = model.resize_cond_for_context_window(
        "num_cond_latents", comfy.conds.CONDConstant(2), window, noise, noise.device, retain_index_list=[]
    )
    assert resized.cond == 1


def test_conditioning_with_its_own_mask_is_used_as_given() -> None:
    import comfy.sd

    model = comfy.sd.load_diffusion_model_state_dict(load("models/hd64.safetensors").copy()).model
    context, mask = torch.ones(1, 7, 64), torch.tensor([[1, 0, 1, 1, 0, 0, 1]])
    conds = model.extra_conds(cross_attn=context, attention_mask=mask)
    assert torch.equal(conds["c_crossattn"].cond, context)
    assert torch.equal(conds["context_mask"].cond, mask)
    with pytest.raises(ValueError, match="7 text tokens but an attention_mask of 5"):
        model.extra_conds(cross_attn=context, attention_mask=mask[:, :5])


@pytest.mark.parametrize("num_cond_latents", [0, 1])
def test_gradients_reach_every_weight(
    network: LongCatVideoTransformer, num_cond_latents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Core's *Train LoRA* needs them; an operation that overwrites what the gradient needs fails here."""
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    network.requires_grad_(True)
    velocity = network(**inputs(), num_cond_latents=num_cond_latents)
    velocity[:, :, num_cond_latents:].square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
