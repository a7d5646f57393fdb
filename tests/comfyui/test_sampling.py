"""Sampling through ComfyUI: the three ways to do it, guidance, and core's own add-ons."""

import itertools
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.sd
import folder_paths
import nodes as core_nodes
import pytest
import torch
from inprocess import find_node, node, sample
from torch import Tensor

from longcat_core import schedule
from longcat_core.guidance import cfg_zero

Loaded = tuple[Any, Any, Any]
Prompts = tuple[Any, Any]
TINY_FILE = "tiny-random.safetensors"


def sample_modular(model: Any, prompts: Prompts, latent: dict, seed: int = 7) -> Tensor:
    """The graph of workflows/longcat_t2v.json."""
    (patched,) = node("LongCatCFGZero")(model)
    (sigmas,) = node("LongCatSigmas")(patched, 4, "base")
    (guider,) = node("CFGGuider")(patched, *prompts, 4.0)
    (noise,) = node("RandomNoise")(seed)
    (euler,) = node("KSamplerSelect")("euler")
    return node("SamplerCustomAdvanced")(noise, guider, euler, sigmas, latent)[0]["samples"]


def test_three_ways_agree_bit_for_bit(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    one_node = node("LongCatSampler")(loaded[0], *prompts, empty_latent, 7, 4, 4.0, "base")[0]["samples"]
    (stock,) = node("UNETLoader")(TINY_FILE, "default")
    stock_sampler = sample(node("LongCatCFGZero")(stock)[0], prompts, empty_latent)
    assert one_node.abs().mean() > 0.1
    assert torch.equal(one_node, sample_modular(loaded[0], prompts, empty_latent))
    assert torch.equal(one_node, stock_sampler)


def test_seed_decides(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    first, again, other = (sample_modular(loaded[0], prompts, empty_latent, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def reference_run(model: Any, prompts: Prompts, latent: dict, seed: int, steps: int, scale: float) -> Tensor:
    """The original's loop written out: raw velocities of ComfyUI's model, CFG-zero*, Euler."""
    velocities: list[Tensor] = []

    def keep(args: dict) -> Tensor:
        velocities[:] = [args["cond"] / args["sigma"], args["uncond"] / args["sigma"]]
        return args["input"] - args["cond_denoised"]

    probe = model.clone()
    probe.set_model_sampler_cfg_function(keep)
    sigmas = schedule.sigmas("base", steps)
    guider = comfy.samplers.CFGGuider(probe)
    guider.set_conds(*prompts)
    guider.set_cfg(scale)
    samples = latent["samples"]
    x = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))

    def step(denoise: Any, x: Tensor, sigmas: Tensor, extra_args: dict, **kwargs: Any) -> Tensor:
        for sigma, following in itertools.pairwise(sigmas):
            denoise(x, sigma.expand(x.shape[0]), **extra_args)
            x = x + (following - sigma) * cfg_zero(*velocities, scale)
        return x

    return guider.sample(x, samples, comfy.samplers.KSAMPLER(step), sigmas, disable_pbar=True)


def test_cfg_zero_node_equals_the_reference_and_cores_does_not(
    loaded: Loaded, prompts: Prompts, empty_latent: dict, report: list[str]
) -> None:
    model = loaded[0]
    expected = reference_run(model, prompts, empty_latent, 7, 4, 4.0)
    distance = {
        name: ((sample(node(name)(model)[0], prompts, empty_latent) - expected).norm() / expected.norm()).item()
        for name in ("LongCatCFGZero", "CFGZeroStar")
    }
    plain = ((sample(model, prompts, empty_latent) - expected).norm() / expected.norm()).item()
    report.append(f"distance to the reference's guidance: {distance}, without either: {plain:.2g}")
    assert distance["LongCatCFGZero"] < 1e-5
    assert distance["CFGZeroStar"] > 1e-3
    assert plain > 1e-4


def test_cfg_zero_twice_is_once(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    (once,) = node("LongCatCFGZero")(loaded[0])
    (twice,) = node("LongCatCFGZero")(once)
    assert torch.equal(sample(once, prompts, empty_latent), sample(twice, prompts, empty_latent))


def test_cfg_one_needs_no_negative_prompt(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    calls = count_calls(loaded[0])
    found = sample(node("LongCatCFGZero")(calls.model)[0], prompts, empty_latent, cfg=1.0)
    assert torch.equal(found, sample(loaded[0], prompts, empty_latent, cfg=1.0))
    assert calls.batches == [1] * 4


class count_calls:  # noqa: N801 - reads as a function
    """A clone of a model that notes the batch size of every call of the network."""

    def __init__(self, model: Any) -> None:
        self.batches: list[int] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key("diffusion_model", "count", self.call)

    def call(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        self.batches.append(args[0].shape[0])
        return executor(*args, **kwargs)


def test_modes_of_the_one_node_sampler(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    calls = count_calls(loaded[0])
    node("LongCatSampler")(calls.model, *prompts, empty_latent, 7, 8, 1.0, "distill")
    assert len(calls.batches) == 8
    node("LongCatSampler")(calls.model, *prompts, empty_latent, 7, 8, 1.0, "enhance_hf")
    assert len(calls.batches) == 8 + len(schedule.sigmas("enhance_hf", 8)) - 1


def test_shift_of_modelsamplingsd3_changes_the_schedule(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    (shifted,) = node("ModelSamplingSD3")(loaded[0], 5.0)
    for model, shift in ((loaded[0], 12.0), (shifted, 5.0)):
        expected = schedule.sigmas("base", 6, shift=shift)
        assert torch.equal(node("LongCatSigmas")(model, 6, "base")[0], expected)
        assert torch.equal(node("BasicScheduler")(model, "longcat", 6, 1.0)[0], expected)
    assert not torch.allclose(sample(shifted, prompts, empty_latent), sample(loaded[0], prompts, empty_latent))


def test_batch_of_two_with_guidance(loaded: Loaded, prompts: Prompts) -> None:
    """Each sample of a batch is what it would be alone: guidance is scaled per sample."""
    (model,) = node("LongCatCFGZero")(loaded[0])
    (pair,) = node("LongCatLatent")(64, 64, 17, 2)
    together = sample(model, prompts, pair)
    assert together.shape == (2, 16, 5, 8, 8)
    for index in range(2):
        alone = {"samples": pair["samples"][:1], "batch_index": [index]}
        torch.testing.assert_close(sample(model, prompts, alone), together[index : index + 1], atol=1e-4, rtol=1e-4)


def test_latent_that_is_not_a_multiple_of_the_patch(loaded: Loaded, prompts: Prompts) -> None:
    found = sample(loaded[0], prompts, {"samples": torch.zeros(1, 16, 3, 7, 9)})
    assert found.shape == (1, 16, 3, 7, 9)
    assert torch.isfinite(found).all()


def test_model_save_and_reload(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    node("ModelSave")(loaded[0], "diffusion_models/saved")
    (file,) = Path(folder_paths.get_output_directory(), "diffusion_models").glob("saved*.safetensors")
    reloaded = comfy.sd.load_diffusion_model(str(file))
    assert torch.equal(sample(reloaded, prompts, empty_latent), sample(loaded[0], prompts, empty_latent))


def test_easycache_skips_model_calls(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    (cached,) = node("EasyCacheNode")(loaded[0], 3.0, 0.0, 1.0, False)
    calls = count_calls(cached)
    found = sample(calls.model, prompts, empty_latent, steps=12)
    assert torch.isfinite(found).all()
    assert 0 < len(calls.batches) < 12


def test_context_windows_cut_the_video(loaded: Loaded, prompts: Prompts) -> None:
    frames: list[int] = []
    model = loaded[0].clone()
    model.add_wrapper_with_key(
        "diffusion_model", "frames", lambda run, *a, **k: frames.append(a[0].shape[2]) or run(*a, **k)
    )
    (windowed,) = node("WanContextWindowsManualNode")(model, 17, 5, "standard_static", 1, False, "pyramid", False)
    (latent,) = node("LongCatLatent")(64, 64, 33)
    found = sample(windowed, prompts, latent)
    assert found.shape == (1, 16, 9, 8, 8)
    assert torch.isfinite(found).all()
    assert max(frames) < 9


def test_torch_compile(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    compiled = node("TorchCompileModel")(loaded[0], "inductor")[0]
    expected = sample(loaded[0], prompts, empty_latent, steps=2)
    torch.testing.assert_close(sample(compiled, prompts, empty_latent, steps=2), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stop_at", [1, 5])
def test_cancel_returns_within_one_model_call(
    loaded: Loaded, prompts: Prompts, empty_latent: dict, stop_at: int
) -> None:
    calls = []

    def interrupt(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(None)
        if len(calls) == stop_at:
            comfy.model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    model = loaded[0].clone()
    model.add_wrapper_with_key("diffusion_model", "interrupt", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, prompts, empty_latent, steps=20)
    assert len(calls) == stop_at
    assert torch.isfinite(sample(loaded[0], prompts, empty_latent)).all()


def test_wrong_text_encoder_is_named(loaded: Loaded) -> None:
    class OtherClip:
        def tokenize(self, text: str, **kwargs: Any) -> dict:
            return {"l": [], "g": []}

        encode_from_tokens_scheduled = None

    with pytest.raises(ValueError, match=r"encoder is l, g; LongCat-Video needs UMT5-XXL"):
        node("LongCatTextEncode")(OtherClip(), "a cat")


def test_long_prompts_end_with_the_end_token(loaded: Loaded) -> None:
    for text, real in (("word " * 700, 512), ("", 1)):
        ((context, _),) = node("LongCatTextEncode")(loaded[1], text)[0]
        assert context.shape[1] == 512
        assert (context != 0).any(-1).sum() == real


def test_prompt_as_the_text_encoder_sees_it(loaded: Loaded) -> None:
    seen: list[dict] = []

    class Recorder:
        tokenize = loaded[1].tokenize

        def encode_from_tokens_scheduled(self, tokens: dict) -> list:
            seen.append(tokens)
            return []

    for text in ("word " * 700, "(a cat:1.5) &amp; a dog"):
        node("LongCatTextEncode")(Recorder(), text)
    long, weighted = ([entry[:2] for entry in tokens["umt5xxl"][0]] for tokens in seen)
    assert len(long) == 512
    assert long[-1] == (1, 1.0)  # the end token
    assert {weight for _, weight in weighted} == {1.0}
    plain = loaded[1].tokenize("(a cat:1.5) & a dog", disable_weights=True)["umt5xxl"][0]
    assert [token for token, _ in weighted] == [entry[0] for entry in plain]


def test_wrong_text_width_is_named(loaded: Loaded, empty_latent: dict) -> None:
    other = [[torch.ones(1, 20, 77), {}]]
    with pytest.raises(ValueError, match="77 channels"):
        sample(loaded[0], (other, other), empty_latent)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "LongCatLatent",
            {"width": 70, "height": 64, "length": 18},
            "width must be a multiple of 16 (use 64 or 80), it is 70; l",
        ),
        ("LongCatSigmas", {"steps": 60, "mode": "distill"}, "has 50 sigmas"),
        ("LongCatSampler", {"steps": 60, "mode": "distill"}, "has 50 sigmas"),
    ],
)
def test_refused_at_validation(name: str, arguments: dict, said: str) -> None:
    assert said in find_node(name).validate_inputs(**arguments)


def test_models_with_another_kind_of_schedule_are_refused(loaded: Loaded) -> None:
    (flux,) = node("ModelSamplingFlux")(loaded[0], 1.15, 0.5, 64, 64)
    with pytest.raises(ValueError, match="samples with ModelSamplingFlux, which has no such shift"):
        node("LongCatSigmas")(flux, 8, "base")


def test_threshold_of_refine(loaded: Loaded) -> None:
    (sigmas,) = node("LongCatSigmas")(loaded[0], 50, "refine", 0.3)
    assert torch.equal(sigmas, schedule.sigmas("refine", 50, threshold=0.3))


def test_empty_latent_equals_cores() -> None:
    (ours,), (cores,) = node("LongCatLatent")(96, 64, 21, 2), node("EmptyHunyuanLatentVideo")(96, 64, 21, 2)
    assert torch.equal(ours.pop("samples"), cores.pop("samples"))
    assert ours.pop("longcat_shown_frames") is None
    assert ours == cores


def test_decode_refuses_what_no_sampler_made(loaded: Loaded, empty_latent: dict) -> None:
    with pytest.raises(ValueError, match="its sigmas were empty"):
        node("LongCatDecode")(loaded[2], empty_latent)
    with pytest.raises(ValueError, match=r"has shape \(1, 4, 8, 8\)"):
        node("LongCatDecode")(loaded[2], {"samples": torch.ones(1, 4, 8, 8)})


def test_refine_refuses_an_empty_latent(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    with pytest.raises(ValueError, match="Mode refine starts from a video"):
        node("LongCatSampler")(loaded[0], *prompts, empty_latent, 7, 8, 1.0, "refine")


def test_empty_sigmas_end_in_a_sentence(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    untouched = sample(loaded[0], prompts, empty_latent, denoise=0.0)
    with pytest.raises(ValueError, match="its sigmas were empty"):
        node("LongCatDecode")(loaded[2], {"samples": untouched})


def test_decoding_in_tiles(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles where asked for and where the device is too small; the same frames either way."""
    latent = {"samples": torch.randn(2, 16, 3, 8, 12, generator=torch.Generator().manual_seed(0))}
    tiled = []
    cores = core_nodes.VAEDecodeTiled.decode
    monkeypatch.setattr(core_nodes.VAEDecodeTiled, "decode", lambda *args: tiled.append(args) or cores(*args))
    (whole,) = node("LongCatDecode")(loaded[2], latent)
    assert not tiled
    (asked,) = node("LongCatDecode")(loaded[2], latent, "always")
    assert len(tiled) == 1
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: 1000)
    (needed,) = node("LongCatDecode")(loaded[2], latent)
    assert len(tiled) == 2
    assert whole.shape == (2 * 9, 64, 96, 3)
    for frames in (asked, needed):
        torch.testing.assert_close(frames, whole, atol=1e-4, rtol=0)


def test_lora_in_the_ordinary_format(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    """Core's LoRA loading finds the network's layers by their names; merging is core's."""
    layer, generator = "diffusion_model.blocks.0.attn.qkv", torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 64, generator=generator), torch.randn(192, 4, generator=generator)
    lora = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
    plain = sample(loaded[0], prompts, empty_latent)
    for strength, same in ((1.0, False), (0.0, True)):
        patched, _ = comfy.sd.load_lora_for_models(loaded[0], None, lora, strength, 0)
        assert torch.allclose(sample(patched, prompts, empty_latent), plain) is same
    assert torch.equal(sample(loaded[0], prompts, empty_latent), plain)
