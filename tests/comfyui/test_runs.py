"""What a sampling run keeps for itself, and what is left of it: nothing."""

import dataclasses
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.model_prefetch
import comfy.sample
import comfy.samplers
import nodes
import pytest
import torch
from inprocess import node, sample
from torch import Tensor

from longcat_core.comfyui import run as run_module
from longcat_core.comfyui.cached_sampling import cache_size
from longcat_core.comfyui.run import Run
from longcat_core.frames.geometry import LatentShape
from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size
from longcat_core.network.kv_cache import KVCache
from longcat_core.network.stores import CacheSize
from longcat_core.sparse import attention as sparse_attention

Loaded = tuple[Any, Any, Any]
Prompts = tuple[Any, Any]
NUM_COND_LATENTS = 2
FP32_NOISE = 1e-5


def continuation(num_latents: int = 6, batch: int = 1) -> dict[str, Tensor]:
    """A 64 x 64 pixel latent whose first two latent frames are given."""
    generator = torch.Generator().manual_seed(0)
    finished = torch.randn(batch, 16, num_latents, 8, 8, generator=generator)
    return node("LongCatContinueLatent")({"samples": finished}, 4 * num_latents - 3, 4 * NUM_COND_LATENTS - 3)[0]


def wrapped(model: Any, wrapper: Callable[..., Tensor]) -> Any:
    """A clone with a wrapper around every call of the network."""
    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "test", wrapper)
    return model


class Stopped(Exception):  # noqa: N818 - reads as a word
    """Raised in the middle of a run."""


@pytest.mark.parametrize("cached", [False, True])
def test_a_stopped_run_leaves_nothing_on_the_model(
    loaded: Loaded, prompts: Prompts, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []

    def stop(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        runs.append(loaded[0].model.run)
        if len(runs) == 2:
            raise Stopped
        return executor(*args, **kwargs)

    made: list[int] = []

    def count(run: Run, **changes: Any) -> Run:
        made.append(changes["num_cond_latents"])
        return dataclasses.replace(run, **changes)

    monkeypatch.setattr(run_module, "replace", count)
    model = wrapped(loaded[0], stop)
    with pytest.raises(Stopped):
        sample(node("LongCatKVCache")(model, "gpu")[0] if cached else model, prompts, continuation())
    assert runs[0] is runs[1]
    assert (runs[0].cache is not None) == cached
    assert made.count(NUM_COND_LATENTS) == 1  # for two prompts
    assert runs[1].num_cond_latents == NUM_COND_LATENTS
    # The frames themselves, not a view that keeps the whole latent.
    assert runs[1].given.untyped_storage().nbytes() == runs[1].given.nbytes
    assert loaded[0].model.run is None
    kept = {name for name, value in vars(loaded[0].model).items() if isinstance(value, Tensor | KVCache)}
    assert kept == set()


@pytest.mark.parametrize("batch", [1, 2])
def test_given_frames_come_back_whoever_looks_in_between(loaded: Loaded, prompts: Prompts, batch: int) -> None:
    """A preview that decodes asks for the latent as the VAE takes it, of the first video alone."""
    latent, looks = continuation(batch=batch), []

    def look(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        looks.append(loaded[0].model.process_latent_out(x0[:1]))

    noise = comfy.sample.prepare_noise(latent["samples"], 7)
    sampler = comfy.samplers.KSampler(loaded[0], 4, noise.device, "uni_pc", "longcat")
    positive, negative = prompts
    with torch.inference_mode():
        found = sampler.sample(
            noise, positive, negative, 4.0, latent["samples"], denoise_mask=latent["noise_mask"], callback=look
        )
    given = latent["samples"][:, :, :NUM_COND_LATENTS]
    assert len(looks) == 4
    torch.testing.assert_close(found[:, :, :NUM_COND_LATENTS], given, atol=1e-6, rtol=0)
    torch.testing.assert_close(looks[0][:, :, :NUM_COND_LATENTS], given[:1], atol=1e-6, rtol=0)


def test_outside_of_a_run_inpainting_is_ordinary(loaded: Loaded, prompts: Prompts) -> None:
    sample(loaded[0], prompts, continuation())
    noise, latent = torch.ones(1, 16, 6, 8, 8), torch.zeros(1, 16, 6, 8, 8)
    found = loaded[0].model.scale_latent_inpaint(sigma=torch.tensor([0.5]), noise=noise, latent_image=latent)
    assert torch.equal(found, torch.full_like(found, 0.5))
    assert torch.isfinite(loaded[0].model.process_latent_out(latent)).all()


def with_areas(prompts: Prompts, *areas: tuple[int, int, int, int]) -> Prompts:
    """The positive prompt again for parts of the frame: width, height, x, y in pixels."""
    positive, negative = prompts
    for area in areas:
        (limited,) = nodes.ConditioningSetArea().append(prompts[0], *area, 1.0)
        (positive,) = nodes.ConditioningCombine().combine(positive, limited)
    return positive, negative


@pytest.mark.parametrize(
    "areas",
    [
        ((32, 64, 0, 0),),
        ((32, 64, 0, 0), (64, 32, 0, 32)),
        ((48, 64, 0, 0), (32, 64, 32, 0)),
        ((32, 64, 0, 0), (32, 64, 32, 0)),
    ],
)
@pytest.mark.parametrize("has_room", [True, False])
def test_areas_of_prompts_have_caches_of_their_own(
    loaded: Loaded,
    prompts: Prompts,
    areas: tuple,
    has_room: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One for the whole frame and one for each area, built once in a run; with room, core makes calls of several."""
    if not has_room:
        monkeypatch.setattr(type(loaded[0]), "get_free_memory", lambda *args: 0)
    caplog.set_level(logging.INFO)
    built: list[int] = []
    network = loaded[0].model.diffusion_model

    def watch(module: Any, args: tuple) -> None:
        call = args[4]
        if call.num_cond_latents == call.grid.frames:
            built.append(call.grid.num_tokens)

    limited, latent = with_areas(prompts, *areas), continuation()
    expected = sample(loaded[0], limited, latent)
    (cached,) = node("LongCatKVCache")(loaded[0], "gpu")
    handle = network.blocks[0].register_forward_pre_hook(watch)
    found = sample(cached, limited, latent)
    handle.remove()
    assert len(built) == 1 + len(areas)
    assert "is rebuilt" not in caplog.text
    assert ((found - expected).norm() / expected.norm()).item() < 1e-2  # guidance scales by the generated frames


def test_too_many_areas_end_in_a_line_and_not_in_rebuilding(
    loaded: Loaded, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    latent = continuation()
    sizes = [(48, 64), (64, 48), (48, 48), (32, 64), (64, 32), (48, 32), (32, 48)]
    limited = with_areas(prompts, *((width, height, 0, 0) for width, height in sizes))
    expected = sample(loaded[0], limited, latent, steps=2)
    found = sample(node("LongCatKVCache")(loaded[0], "gpu")[0], limited, latent, steps=2)
    assert caplog.text.count("LongCat KV Cache is not used: the areas of the prompts are too many.") == 1
    assert "is rebuilt" not in caplog.text
    assert "different frames" not in caplog.text
    assert ((found - expected).norm() / expected.norm()).item() < 1e-2


@torch.no_grad()
def test_a_cached_call_takes_one_timestep_for_all_frames() -> None:
    network = LongCatVideoTransformer(
        hidden_size=64, depth=2, num_heads=1, ffn_hidden_size=ffn_hidden_size(64), caption_channels=32
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    x, text = torch.randn(2, 16, 3, 8, 8, generator=generator), torch.randn(2, 16, 32, generator=generator)
    x[1, :, :1] = x[0, :, :1]
    for timestep in (torch.tensor([500.0, 700.0]), torch.tensor([500.0])):
        videos = x[: len(timestep)]
        of_each_frame = timestep.view(-1, 1).repeat(1, 3)
        of_each_frame[:, 0] = 0
        plain = network(videos, of_each_frame, text[: len(timestep)], num_cond_latents=1)
        cache = KVCache(CacheSize(16, 64, 2, 4), "gpu")
        found = network(videos, timestep, text[: len(timestep)], num_cond_latents=1, kv_cache=cache)
        torch.testing.assert_close(found[:, :, 1:], plain[:, :, 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keeps_no_scores", [False, True])
def test_memory_of_the_cache_is_reserved_whichever_attention(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, keeps_no_scores: bool
) -> None:
    """Also where core's estimate is replaced, as with the attention of graphics cards."""
    model = loaded[0].model
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: keeps_no_scores)
    size = cache_size(model, LatentShape(6, 8, 8), NUM_COND_LATENTS)
    needed = {}
    for held in (CacheSize(0, 0, 0, 0), size):
        monkeypatch.setattr(model, "run", Run(cache=KVCache(held, "gpu")))
        needed[held.total_bytes] = model.memory_required([1, 16, 6, 8, 8])
    assert needed[size.total_bytes] - needed[0] == size.total_bytes


def test_prefetching_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core moves the weights of the next block ahead; behind the last one it must be told that none follows."""
    network = LongCatVideoTransformer(
        hidden_size=64, depth=3, num_heads=1, ffn_hidden_size=ffn_hidden_size(64), caption_channels=32
    )
    popped: list[Any] = []
    monkeypatch.setattr(comfy.model_prefetch, "make_prefetch_queue", lambda blocks, device, options: list(blocks))
    monkeypatch.setattr(comfy.model_prefetch, "prefetch_queue_pop", lambda queue, device, block: popped.append(block))
    with torch.no_grad():
        network(torch.zeros(1, 16, 1, 4, 4), torch.tensor([500.0]), torch.zeros(1, 4, 32))
    assert popped == [*network.blocks, None]


@pytest.mark.parametrize(("heads", "at_once", "expected"), [(6, 4, 3), (8, 5, 4), (7, 6, 1), (4, 9, 4)])
def test_groups_of_heads_are_of_one_size(
    heads: int, at_once: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel is compiled for each size."""
    q = torch.zeros(1, heads, 4, 8)
    monkeypatch.setattr(sparse_attention, "GROUP_BYTES", at_once * 4 * 4 * 8 * q.element_size())
    groups = sparse_attention.head_groups(q, q)
    assert {group.stop - group.start for group in groups} == {expected}
    assert [head for group in groups for head in range(group.start, group.stop)] == list(range(heads))


def test_tiles_are_chosen_by_one_video(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Core decodes the videos of a batch one after the other."""
    decoded: list[str] = []
    video = torch.randn(2, 16, 2, 8, 8)
    vae = loaded[2]
    one = vae.memory_used_decode(video[:1].shape, vae.vae_dtype)
    monkeypatch.setattr(vae, "memory_used_decode", lambda shape, dtype: one * shape[0])
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: 1.5 * one)
    frames = torch.zeros(10, 64, 64, 3)
    for name in ("VAEDecode", "VAEDecodeTiled"):
        fake = SimpleNamespace(decode=lambda *args, name=name: decoded.append(name) or (frames,))
        monkeypatch.setattr(nodes, name, lambda fake=fake: fake)
    node("LongCatDecode")(vae, {"samples": video})
    assert decoded == ["VAEDecode"]
