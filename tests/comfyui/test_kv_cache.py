"""The cache of condition frames: what it computes, when it is refused, what it leaves behind and what it takes."""

import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy_extras.nodes_hooks as hooks
import comfy_extras.nodes_slg as slg
import folder_paths
import pytest
import safetensors.torch
import torch
import torch._dynamo
from inprocess import node, sample
from live_bytes import LiveBytes
from torch import Tensor
from torch._dynamo.utils import counters

from longcat_core.comfyui import cached_sampling
from longcat_core.comfyui.cached_sampling import Policy, place
from longcat_core.guidance import cfg_zero
from longcat_core.network import stores
from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size
from longcat_core.network.kv_cache import KVCache
from longcat_core.network.stores import CacheSize, DeviceStore, HostStore

Loaded = tuple[Any, Any, Any]
Prompts = tuple[Any, Any]
TINY_FILE = "tiny-random.safetensors"
NUM_LATENTS, TOKENS_PER_FRAME, HIDDEN, DEPTH = 6, 16, 64, 2
FP32_NOISE = 1e-5
CPU = torch.device("cpu")


def with_cache(model: Any, policy: Policy = "gpu") -> Any:
    """The model with the node after it."""
    return node("LongCatKVCache")(model, policy)[0]


def finished_video(batch: int = 1, num_latents: int = NUM_LATENTS) -> Tensor:
    """A random 64 x 64 pixel latent; the videos of a batch differ."""
    return torch.randn(batch, 16, num_latents, 8, 8, generator=torch.Generator().manual_seed(0))


def continuation(num_cond_latents: int, batch: int = 1, length: int = 4 * NUM_LATENTS - 3) -> dict[str, Tensor]:
    """A latent of 21 frames that begins with 1 (image-to-video) or more given latent frames."""
    frames = 4 * num_cond_latents - 3
    return node("LongCatContinueLatent")({"samples": finished_video(batch)}, length, frames)[0]


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((found - expected).norm() / expected.norm()).item()


def wrapped(model: Any, wrapper: Callable[..., Tensor]) -> Any:
    """A clone with a wrapper around every call of the network."""
    model = model.clone()
    model.add_wrapper_with_key("diffusion_model", "test", wrapper)
    return model


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """Log lines that contain some words."""
    return [record.message for record in caplog.records if words in record.message]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@contextmanager
def watched_blocks(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Batch size and number of tokens of every call of the network's first block."""
    seen: list[tuple[int, int]] = []
    block = model.model.diffusion_model.blocks[0]
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    yield seen
    handle.remove()


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_cond_latents", [1, 4])
@pytest.mark.parametrize(("steps", "cfg"), [(2, 1.0), (5, 1.0), (3, 4.0)])
def test_condition_frames_are_computed_once_per_run(
    loaded: Loaded, prompts: Prompts, num_cond_latents: int, steps: int, cfg: float
) -> None:
    latent, cached = continuation(num_cond_latents), with_cache(loaded[0])
    num_noise = NUM_LATENTS - num_cond_latents
    branches = 1 if cfg == 1.0 else 2
    for _ in range(2):  # a cache lasts for one run
        with watched_blocks(cached) as seen:
            sample(cached, prompts, latent, steps=steps, cfg=cfg)
        assert seen[0] == (1, num_cond_latents * TOKENS_PER_FRAME)
        assert {tokens for _, tokens in seen[1:]} == {num_noise * TOKENS_PER_FRAME}
        assert sum(batch for batch, _ in seen[1:]) == steps * branches
    with watched_blocks(loaded[0]) as seen:
        sample(loaded[0], prompts, latent, steps=steps, cfg=cfg)
    assert {tokens for _, tokens in seen} == {NUM_LATENTS * TOKENS_PER_FRAME}


def refined(model: Any, prompts: Prompts, num_cond_latents: int) -> Tensor:
    """A run of mode refine from a finished video, half noise, whose first frames are given."""
    mask = torch.ones(1, 1, NUM_LATENTS, 8, 8)
    mask[:, :, :num_cond_latents] = 0
    latent = {"samples": finished_video(), "noise_mask": mask}
    return node("LongCatSampler")(model, *prompts, latent, 7, 50, 1.0, "refine")[0]["samples"]


def continued(model: Any, prompts: Prompts, num_cond_latents: int) -> Tensor:
    """An unguided run of image-to-video (1) or continuation."""
    return sample(model, prompts, continuation(num_cond_latents), cfg=1.0)


@pytest.mark.parametrize("run", [continued, refined])
@pytest.mark.parametrize("num_cond_latents", [1, 4])
def test_exact_without_guidance_and_with_either_policy(
    loaded: Loaded, prompts: Prompts, run: Callable[..., Tensor], num_cond_latents: int, report: list[str]
) -> None:
    expected = run(loaded[0], prompts, num_cond_latents)
    on_gpu, on_cpu = (run(with_cache(loaded[0], policy), prompts, num_cond_latents) for policy in ("gpu", "cpu"))
    found = distance(on_gpu, expected)
    report.append(f"KV cache, {run.__name__}, {num_cond_latents} condition latents: {found:.1e} from the plain run")
    assert found < FP32_NOISE
    assert torch.equal(on_gpu, on_cpu)
    assert distance(run(loaded[0], prompts, 2), expected) > 1e-2


@pytest.mark.parametrize("num_cond_latents", [1, 4])
def test_guidance_scales_by_the_generated_frames_only(
    loaded: Loaded, prompts: Prompts, num_cond_latents: int, report: list[str]
) -> None:
    """As the reference with its cache; without one, and so without this node, it includes the condition frames."""

    def noise_frames_only(args: dict) -> Tensor:
        cond, uncond = args["cond"].clone(), args["uncond"].clone()  # sigma * velocity
        cond[:, :, :num_cond_latents] = uncond[:, :, :num_cond_latents] = 0
        return cfg_zero(cond, uncond, args["cond_scale"])

    written_out = loaded[0].clone()
    written_out.set_model_sampler_cfg_function(noise_frames_only)
    latent = continuation(num_cond_latents)
    expected = sample(written_out, prompts, latent)
    (guided,) = node("LongCatCFGZero")(loaded[0])
    found, without = distance(sample(with_cache(guided), prompts, latent), expected), sample(guided, prompts, latent)
    report.append(
        f"KV cache, guided, {num_cond_latents} condition latents: {found:.1e} from CFG-zero* over the generated "
        f"frames, {distance(without, expected):.1e} without the node"
    )
    assert found < FP32_NOISE
    assert distance(without, expected) > 10 * FP32_NOISE


def test_without_condition_frames_nothing_changes(loaded: Loaded, prompts: Prompts, empty_latent: dict) -> None:
    cached = with_cache(loaded[0])
    assert torch.equal(sample(cached, prompts, empty_latent), sample(loaded[0], prompts, empty_latent))


def test_bf16(loaded: Loaded, prompts: Prompts, report: list[str]) -> None:
    file = folder_paths.get_full_path_or_raise("diffusion_models", TINY_FILE)
    plain = comfy.sd.load_diffusion_model(file, model_options={"dtype": torch.bfloat16})
    plain.set_model_compute_dtype(torch.bfloat16)
    stored: list[Tensor] = []
    cached = wrapped(with_cache(plain), keep_stored(plain.model, stored))
    found, expected = (sample(model, prompts, continuation(4), cfg=1.0) for model in (cached, plain))
    rounding = distance(expected, sample(loaded[0], prompts, continuation(4), cfg=1.0))
    report.append(
        f"KV cache in bf16: {distance(found, expected):.1e} from the plain run, which rounds by {rounding:.1e}"
    )
    assert {kv.dtype for kv in stored} == {torch.bfloat16}
    assert sum(kv.nbytes for kv in stored) == CacheSize(4 * TOKENS_PER_FRAME, HIDDEN, DEPTH, 2).total_bytes
    assert distance(found, expected) < rounding


def keep_stored(model: Any, stored: list[Tensor]) -> Callable[..., Tensor]:
    """A wrapper that notes what the cache holds after every call."""

    def call(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        output = executor(*args, **kwargs)
        stored[:] = [kv for kept in model.run.cache.stores for kv in kept.store.blocks.values()]
        return output

    return call


# --- with other nodes -------------------------------------------------------------------------------------------------


def test_installed_twice_is_once(loaded: Loaded, prompts: Prompts, caplog: pytest.LogCaptureFixture) -> None:
    twice = with_cache(with_cache(loaded[0], "gpu"), "cpu")
    with watched_blocks(twice) as seen:
        sample(twice, prompts, continuation(1))
    assert [tokens for _, tokens in seen].count(TOKENS_PER_FRAME) == 1
    assert [line.rpartition(" ")[2] for line in said(caplog, "LongCat KV Cache")] == ["cpu."]


def tiny_lora() -> dict[str, Tensor]:
    """A LoRA for the first block's keys and values, among others."""
    layer, generator = "diffusion_model.blocks.0.attn.qkv", torch.Generator().manual_seed(0)
    down, up = torch.randn(4, HIDDEN, generator=generator), torch.randn(3 * HIDDEN, 4, generator=generator)
    return {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}


def test_before_and_after_a_lora(loaded: Loaded, prompts: Prompts) -> None:
    latent = continuation(4)
    patched, _ = comfy.sd.load_lora_for_models(loaded[0], None, tiny_lora(), 1.0, 0)
    patched_later, _ = comfy.sd.load_lora_for_models(with_cache(loaded[0]), None, tiny_lora(), 1.0, 0)
    expected = sample(patched, prompts, latent, cfg=1.0)
    assert distance(expected, sample(loaded[0], prompts, latent, cfg=1.0)) > 1e-3
    for model in (with_cache(patched), patched_later):
        assert distance(sample(model, prompts, latent, cfg=1.0), expected) < FP32_NOISE
    plain = sample(loaded[0], prompts, latent, cfg=1.0)
    assert distance(sample(with_cache(loaded[0]), prompts, latent, cfg=1.0), plain) < FP32_NOISE


def test_easycache_skips_calls_and_the_cache_serves_the_others(loaded: Loaded, prompts: Prompts) -> None:
    """EasyCache also weighs the condition frames' velocity, which the cache does not compute: skips may differ."""
    latent = continuation(4)
    (skipping,) = node("EasyCacheNode")(with_cache(loaded[0]), 3.0, 0.0, 1.0, False)
    with watched_blocks(skipping) as seen:
        found = sample(skipping, prompts, latent, steps=12, cfg=1.0)
    assert seen[0] == (1, 4 * TOKENS_PER_FRAME)
    assert set(seen[1:]) == {(1, 2 * TOKENS_PER_FRAME)}
    assert len(seen[1:]) < 12
    torch.testing.assert_close(found[:, :, :4], latent["samples"][:, :, :4])

    (never_skipping,) = node("EasyCacheNode")(with_cache(loaded[0]), 0.0, 0.0, 1.0, False)
    expected = sample(loaded[0], prompts, latent, steps=12, cfg=1.0)
    assert distance(sample(never_skipping, prompts, latent, steps=12, cfg=1.0), expected) < FP32_NOISE


def test_other_models_are_refused() -> None:
    other = SimpleNamespace(model=comfy.model_base.WAN21.__new__(comfy.model_base.WAN21))
    with pytest.raises(ValueError, match=r"works with LongCat-Video only; the connected model is WAN21\."):
        with_cache(other)


@pytest.mark.parametrize("policy", ["gpu", "cpu"])
def test_a_second_compiled_run_compiles_nothing(
    loaded: Loaded, prompts: Prompts, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo's part of TorchCompileModel, which decides what is compiled anew; what a backend makes of a graph is not
    this pack's. Pinning breaks graphs where there is a GPU.
    """
    pinned: list[Tensor] = []
    kept: list[Tensor] = []
    write = DeviceStore.write
    monkeypatch.setattr(comfy.model_management, "pin_memory", torch.compiler.disable(pinned.append))
    monkeypatch.setattr(DeviceStore, "write", lambda store, index, kv: kept.append(kv) or write(store, index, kv))
    torch._dynamo.reset()
    latent = continuation(4)
    (compiled,) = node("TorchCompileModel")(loaded[0], "eager")
    cached, expected = with_cache(compiled, policy), sample(loaded[0], prompts, latent, cfg=1.0)
    sample(compiled, prompts, latent, cfg=1.0)  # what is compiled without the cache must not be taken with it
    graphs = []
    for _ in range(3):
        counters.clear()
        assert distance(sample(cached, prompts, latent, cfg=1.0), expected) < FP32_NOISE
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs == [1, 0, 0]
    assert (len(pinned), len(kept)) == ((3 * DEPTH, 0) if policy == "cpu" else (0, 3 * DEPTH))


# --- where it would be wrong ------------------------------------------------------------------------------------------

Case = tuple[Any, Prompts, dict]


def in_context_windows(model: Any, prompts: Prompts) -> Case:
    arguments = (17, 5, "standard_static", 1, False, "pyramid", False)
    return node("WanContextWindowsManualNode")(model, *arguments)[0], prompts, continuation(2, length=33)


def with_a_replaced_block(model: Any, prompts: Prompts) -> Case:
    model = model.clone()
    model.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 1)
    return model, prompts, continuation(1)


def with_different_first_frames(model: Any, prompts: Prompts) -> Case:
    return model, prompts, continuation(1, batch=2)


def with_a_scheduled_lora(model: Any, prompts: Prompts) -> Case:
    file = Path(folder_paths.models_dir) / "loras" / "kv_cache.safetensors"
    file.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file(tiny_lora(), file)
    (hook,) = hooks.CreateHookLora().create_hook(file.name, 1.0, 0.0)
    (first,) = hooks.CreateHookKeyframe().create_hook_keyframe(0.0, 0.0)
    (keyframes,) = hooks.CreateHookKeyframe().create_hook_keyframe(1.0, 0.5, first)
    (scheduled,) = hooks.SetHookKeyframes().set_hook_keyframes(hook, keyframes)
    positive, negative = (hooks.SetModelHooksOnCond().attach_hook(entry, scheduled)[0] for entry in prompts)
    return model, (positive, negative), continuation(1)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (in_context_windows, "context windows show the network other frames in every window"),
        (with_a_replaced_block, "another node replaces blocks of the network"),
        (with_different_first_frames, "the videos of the batch begin with different frames"),
        (with_a_scheduled_lora, "hooks change the weights during the run"),
    ],
)
def test_switched_off_with_one_line(
    loaded: Loaded, prompts: Prompts, caplog: pytest.LogCaptureFixture, case: Callable[..., Case], reason: str
) -> None:
    model, conditioning, latent = case(loaded[0], prompts)
    expected = sample(model, conditioning, latent)
    assert not said(caplog, "LongCat KV Cache")
    for _ in range(2):  # one line per run
        caplog.clear()
        assert torch.equal(sample(with_cache(model), conditioning, latent), expected)
        assert said(caplog, "is not used") == [f"LongCat KV Cache is not used: {reason}."]


def test_a_scheduled_lora_matters(loaded: Loaded, prompts: Prompts) -> None:
    """The hooks of the case above do change the result."""
    model, conditioning, latent = with_a_scheduled_lora(loaded[0], prompts)
    assert distance(sample(model, conditioning, latent), sample(model, prompts, latent)) > 1e-3


def test_skip_layer_guidance_has_its_own_calls_uncached(
    loaded: Loaded, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    (skipping,) = slg.SkipLayerGuidanceDiT.execute(loaded[0], 3.0, 0.0, 1.0, double_layers="1").args
    latent = continuation(4)
    expected = sample(skipping, prompts, latent, cfg=1.0)
    cached = with_cache(skipping)
    with watched_blocks(cached) as seen:
        assert distance(sample(cached, prompts, latent, cfg=1.0), expected) < FP32_NOISE
    assert distance(expected, sample(loaded[0], prompts, latent, cfg=1.0)) > 1e-3
    assert {2, 4, NUM_LATENTS} == {tokens // TOKENS_PER_FRAME for _, tokens in seen}
    assert len(said(caplog, "is not used")) == 1


def test_changed_condition_frames_rebuild_it(
    loaded: Loaded, prompts: Prompts, caplog: pytest.LogCaptureFixture
) -> None:
    num_cond_latents = 2

    def changing(model: Any) -> Any:
        calls = itertools.count()

        def change(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            moved = x.clone()
            moved[:, :, :num_cond_latents] += 1.0 if next(calls) >= 2 else 0.0
            return executor(moved, *args, **kwargs)

        return wrapped(model, change)

    latent = continuation(num_cond_latents)
    expected = sample(changing(loaded[0]), prompts, latent, cfg=1.0)
    assert distance(expected, sample(loaded[0], prompts, latent, cfg=1.0)) > 1e-3
    for policy in ("gpu", "cpu"):
        caplog.clear()
        with watched_blocks(loaded[0]) as seen:
            found = sample(changing(with_cache(loaded[0], policy)), prompts, latent, cfg=1.0)
        assert distance(found, expected) < FP32_NOISE
        assert [tokens for _, tokens in seen].count(num_cond_latents * TOKENS_PER_FRAME) == 2
        assert len(said(caplog, "is rebuilt: the condition frames have changed")) == 1


# --- memory -----------------------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 - reads as a word
    """Raised in the middle of a run."""


def go_on() -> None:
    """Let the run end."""


def fail() -> None:
    """What any other node may do."""
    raise Stopped


@pytest.mark.parametrize("policy", ["gpu", "cpu"])
@pytest.mark.parametrize(
    ("in_the_middle", "raised"),
    [
        (go_on, None),
        (comfy.model_management.interrupt_current_processing, comfy.model_management.InterruptProcessingException),
        (fail, Stopped),
    ],
)
def test_nothing_is_left(
    loaded: Loaded, prompts: Prompts, policy: Policy, in_the_middle: Callable[[], None], raised: type | None
) -> None:
    caches: list[KVCache] = []
    stored: list[weakref.ref] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        output = executor(*args, **kwargs)
        caches.append(loaded[0].model.run.cache)
        if len(caches) == 2:
            (kept,) = caches[0].stores
            stored.extend(weakref.ref(kv.untyped_storage()) for kv in kept.store.blocks.values())
            assert loaded[0].model.run.cache is caches[0]
            in_the_middle()
        return output

    model = wrapped(with_cache(loaded[0], policy), look)
    if raised:
        with pytest.raises(raised):
            sample(model, prompts, continuation(4))
    else:
        sample(model, prompts, continuation(4))
    assert len(stored) == DEPTH
    assert not any(reference() for reference in stored)
    assert caches[0].stores == []
    assert loaded[0].model.run is None


def test_stopped_while_it_is_built(loaded: Loaded, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(comfy.model_management, "pin_memory", pinned.append)
    monkeypatch.setattr(comfy.model_management, "unpin_memory", pinned.remove)

    def stop(module: Any, arguments: Any) -> None:
        assert len(pinned) == 1
        raise Stopped

    hook = loaded[0].model.diffusion_model.blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(Stopped):
        sample(with_cache(loaded[0], "cpu"), prompts, continuation(4))
    hook.remove()
    assert pinned == []
    assert loaded[0].model.run is None


@pytest.mark.parametrize("policy", ["gpu", "cpu"])
def test_comfyui_plans_for_it_until_it_is_there(
    loaded: Loaded, prompts: Prompts, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded[0].model
    stored: list[Tensor] = []
    planned: dict[bool, set[float]] = {False: set(), True: set()}

    def memory_required(*args: Any, **kwargs: Any) -> float:
        required = type(model).memory_required(model, *args, **kwargs)
        if model.run and model.run.cache:
            is_built = bool(model.run.cache.stores)
            planned[is_built].add(required - comfy.model_base.BaseModel.memory_required(model, *args, **kwargs))
        return required

    monkeypatch.setattr(model, "memory_required", memory_required)
    sample(wrapped(with_cache(loaded[0], policy), keep_stored(model, stored)), prompts, continuation(4))
    bytes_by_hand = DEPTH * 2 * 4 * TOKENS_PER_FRAME * HIDDEN * 4
    assert planned == {False: {bytes_by_hand}, True: {0}}
    assert sum(kv.nbytes for kv in stored) == bytes_by_hand
    assert CacheSize(4 * TOKENS_PER_FRAME, HIDDEN, DEPTH, 4).device_bytes(policy) == bytes_by_hand


def test_planned_bytes_are_those_of_the_policy() -> None:
    size = CacheSize(num_tokens=10, hidden_size=64, depth=5, itemsize=4)
    assert KVCache(size, "gpu").bytes_to_come() == 5 * 2 * 10 * 64 * 4
    assert KVCache(size, "cpu").bytes_to_come() == 2 * 2 * 10 * 64 * 4


def test_auto_is_told_what_a_call_needs(loaded: Loaded, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(cached_sampling, "place", lambda policy, size, needed, device: told.append(needed) or "gpu")
    latent = continuation(4)
    sample(with_cache(loaded[0], "auto"), prompts, latent)
    assert told == [loaded[0].model.memory_required(list(latent["samples"].shape))]


def test_auto_chooses_by_what_the_device_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    size, needed = CacheSize(6240, 4096, 48, 2), 10e9
    assert round(size.total_bytes / 1e9, 1) == 4.9
    assert size.device_bytes("cpu") == size.total_bytes / 24
    for missing, expected in ((0, "gpu"), (1, "cpu")):
        total = size.total_bytes + needed - missing
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device, total=total: total)
        assert place("auto", size, needed, CPU) == expected
        assert {place("gpu", size, needed, CPU), place("cpu", size, needed, CPU)} == {"gpu", "cpu"}


class Unnoted:
    """A store whose own operations are left out of the timeline, so that timelines of two stores can be compared."""

    def __init__(self, read: Callable[[int], Tensor], memory: LiveBytes) -> None:
        self.source, self.memory = read, memory

    def read(self, block_index: int) -> Tensor:
        self.memory.is_noting = False
        kv = self.source(block_index)
        self.memory.is_noting = True
        return kv


@torch.no_grad()
def timeline(network: LongCatVideoTransformer, size: CacheSize, store: str) -> list[int]:
    """Living bytes after every operation of a call with a built cache; with store "nothing", one that has no size."""
    cache = KVCache(size, "gpu" if store == "nothing" else store)
    x, context = torch.randn(1, 16, 8, 8, 8), torch.randn(1, 16, 32)
    timestep = torch.tensor([[0.0] * 4 + [500.0] * 4])
    with LiveBytes() as memory:
        network(x, timestep, context, None, 4, kv_cache=cache)
        (kept,) = cache.stores
        read = kept.store.read
        if store == "nothing":
            nothing = torch.zeros(()).expand(read(0).shape)
            kept.store.clear()
            read = dict.fromkeys(range(size.depth), nothing).__getitem__
        kept.store = Unnoted(read, memory)
        memory.timeline.clear()
        network(x, timestep, context, None, 4, kv_cache=cache)
    return memory.timeline


def test_memory_it_takes(report: list[str]) -> None:
    """At every operation of a call, against one whose cached keys and values have no size."""
    hidden, depth = 256, 24
    network = LongCatVideoTransformer(
        hidden_size=hidden, depth=depth, num_heads=4, ffn_hidden_size=ffn_hidden_size(hidden), caption_channels=32
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    size = CacheSize(4 * TOKENS_PER_FRAME, hidden, depth, 4)
    without = timeline(network, size, "nothing")
    at_rest = {"gpu": 0, "cpu": size.total_bytes}  # on this machine the host's part counts too
    for policy, host_bytes in at_rest.items():
        taking = timeline(network, size, policy)
        extra = max(a - b for a, b in zip(taking, without, strict=True)) - host_bytes
        peak = max(taking) - max(without) - host_bytes
        computed = size.device_bytes(policy)
        report.append(
            f"KV cache, policy {policy}: {extra / computed:.4f} of the computed {computed / 1e3:.0f} kB on the device, "
            f"the call's peak grows by {peak / computed:.4f} of it"
        )
        assert extra == pytest.approx(computed, rel=0.05)
        assert peak <= 1.05 * computed


class FakeStream:
    """Notes what a stream is asked for."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: "FakeStream") -> None:
        self.events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def copying(self) -> Iterator[None]:
        self.events.append(f"{self.name} copies")
        yield


def test_blocks_travel_ahead_of_use_and_wait_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for streams: in what order work is given to them, not what they do with it."""
    events: list[str] = []
    computing = FakeStream("computing", events)
    monkeypatch.setattr(stores, "copy_stream", lambda device: FakeStream("A", events))
    monkeypatch.setattr(torch.cuda, "stream", FakeStream.copying)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("all waits"))
    monkeypatch.setattr(comfy.model_management, "is_device_cuda", lambda device: True)
    monkeypatch.setattr(comfy.model_management, "current_stream", lambda device: computing)
    monkeypatch.setattr(comfy.model_management, "unpin_memory", lambda host: events.append("unpinned"))
    store, blocks = HostStore(CPU), torch.randn(2, 2, 1, 2, 3, 4)
    for index, kv in enumerate(blocks):
        store.write(index, kv)
    for index in (0, 1, 0):
        events.append(f"block {index}")
        assert torch.equal(store.read(index), blocks[index])
    store.clear()
    sent = ("A waits for computing", "A copies")
    read = ("computing waits for A", *sent)
    assert events == [
        *sent,
        *("block 0", *read),
        *("block 1", *read),
        *("block 0", *read),
        *("all waits", "unpinned", "unpinned"),
    ]
