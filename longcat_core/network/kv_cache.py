"""Keys and values of the condition frames, computed once per sampling run.

Condition tokens attend only to each other, do not see the text and are always at timestep 0: what they contribute to
the network, their rotated keys and their values in every self-attention, is the same at every step, for every prompt
and in both branches of guidance. Computing it once is exact, not an approximation.

The first call of a run takes the condition frames through the network alone, in a batch of one, and keeps every
block's keys and values. Each call then runs the noise frames alone; self-attention prepends what was kept. The
velocity of condition frames is returned as 0, so CFG-zero* scales by the noise frames only, as the reference does with
its cache (without one it includes the condition frames).

Source: meituan-longcat/LongCat-Video, `_cache_clean_latents` and `forward_with_kv_cache`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import comfy.hooks
import comfy.model_management
import torch
from torch import Tensor

from ..frames.condition import leading_clean_frames
from ..frames.geometry import LatentShape

Placement = Literal["gpu", "cpu"]
Policy = Literal["auto", "gpu", "cpu"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

KV_EXCHANGE = "longcat_kv_exchange"
BLOCKS_IN_FLIGHT = 2


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the keys and values of a number of condition tokens."""

    num_tokens: int
    hidden_size: int
    depth: int
    itemsize: int

    @property
    def block_bytes(self) -> int:
        """Of one block."""
        return 2 * self.num_tokens * self.hidden_size * self.itemsize

    @property
    def total_bytes(self) -> int:
        """Of all blocks."""
        return self.depth * self.block_bytes

    def device_bytes(self, placement: Placement) -> int:
        """What lies on the computing device at once."""
        return self.total_bytes if placement == "gpu" else min(BLOCKS_IN_FLIGHT, self.depth) * self.block_bytes


def cache_size(model: Any, latent: LatentShape, num_cond_latents: int) -> CacheSize:
    """Size of the cache of a `LongCatVideoModel` for a latent of this shape."""
    network = model.diffusion_model
    grid = latent.grid(network.patch_size)
    return CacheSize(
        num_tokens=num_cond_latents * grid.tokens_per_frame,
        hidden_size=network.hidden_size,
        depth=len(network.blocks),
        itemsize=model.get_dtype_inference().itemsize,
    )


class Store(Protocol):
    """Where keys and values `[2, 1, heads, tokens, head_dim]` of every block are kept."""

    def write(self, block_index: int, kv: Tensor) -> None:
        """Keep one block's."""

    def read(self, block_index: int) -> Tensor:
        """One block's, on the computing device."""

    def clear(self) -> None:
        """Give the memory back."""


class DeviceStore:
    """Keeps everything on the device that computed it."""

    def __init__(self) -> None:
        self.blocks: dict[int, Tensor] = {}

    def write(self, block_index: int, kv: Tensor) -> None:
        """Keep one block's."""
        self.blocks[block_index] = kv

    def read(self, block_index: int) -> Tensor:
        """One block's."""
        return self.blocks[block_index]

    def clear(self) -> None:
        """Give the memory back."""
        self.blocks.clear()


class HostStore:
    """Keeps everything in pinned host memory; while one block computes, the next one's part is on its way."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = copy_stream(device)
        self.blocks: dict[int, Tensor] = {}
        self.arriving: dict[int, tuple[Tensor, Any]] = {}

    def write(self, block_index: int, kv: Tensor) -> None:
        """Keep one block's; pinning is ComfyUI's and within its limit."""
        host = torch.empty(kv.shape, dtype=kv.dtype)
        comfy.model_management.pin_memory(host)
        self.blocks[block_index] = host.copy_(kv)
        if block_index == 0:
            self._send(0)

    def read(self, block_index: int) -> Tensor:
        """One block's, on the computing device; starts to copy the following one's, after the last the first's."""
        if block_index not in self.arriving:
            self._send(block_index)
        kv, stream = self.arriving.pop(block_index)
        comfy.model_management.sync_stream(self.device, stream)
        self._send((block_index + 1) % len(self.blocks))
        return kv

    def clear(self) -> None:
        """Give the memory back."""
        if self.blocks and comfy.model_management.is_device_cuda(self.device):
            torch.cuda.synchronize(self.device)  # a copy may still be reading what is unpinned here
        self.arriving.clear()
        for host in self.blocks.values():
            comfy.model_management.unpin_memory(host)
        self.blocks.clear()

    def _send(self, block_index: int) -> None:
        host = self.blocks[block_index]
        # Memory of the computing stream, for which the copy waits: what it held before may still be in use there.
        kv = torch.empty_like(host, device=self.device)
        stream = None if torch.compiler.is_compiling() else self.stream
        if stream is None:
            kv.copy_(host, non_blocking=True)
        else:
            stream.wait_stream(comfy.model_management.current_stream(self.device))
            with torch.cuda.stream(stream):
                kv.copy_(host, non_blocking=True)
        self.arriving[block_index] = kv, stream


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies to a CUDA device; None elsewhere, where they are made in the order of everything else.

    Not one of ComfyUI's: it hands them out in turn to the weights of each block, and one that waits for this block's
    work would keep the weights of the next from travelling ahead.
    """
    return torch.cuda.Stream(device=device) if comfy.model_management.is_device_cuda(device) else None


@dataclass(eq=False)
class KVCache:
    """The cache of one sampling run, which the network is called with.

    Devices that share the run (ComfyUI's multi-GPU guidance) have a store each.
    """

    size: CacheSize
    placement: Placement
    stores: dict[torch.device, tuple[Tensor, Store]] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    @property
    def bytes_to_come(self) -> int:
        """Device memory that the cache will still take, for ComfyUI's planning; 0 once it is built."""
        return 0 if self.stores else self.size.device_bytes(self.placement)

    @torch.compiler.disable(recursive=False)  # only the network that it calls is worth a graph
    def run(
        self,
        forward: Callable[..., Tensor],
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        transformer_options: dict[str, Any],
        context_mask: Tensor | None = None,
        num_cond_latents: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        """What `forward` returns for the noise frames, 0 for the condition frames; arguments as `forward`'s.

        Where the cache would be wrong, `forward` is called on everything and the log says why, once.
        """
        condition = x[:, :, :num_cond_latents]
        reason = why_not(condition, transformer_options)
        if reason is not None:
            if num_cond_latents:
                self._say(f"LongCat KV Cache is not used: {reason}.")
            return forward(x, timestep, context, transformer_options, context_mask, num_cond_latents, **kwargs)

        store = self._store(forward, condition[:1], context[:1], transformer_options)
        options = {
            **transformer_options,
            KV_EXCHANGE: lambda index, k, v: prepend(store.read(index), k, v),
            "rope_options": moved_along(transformer_options.get("rope_options"), num_cond_latents),
        }
        noise, noise_timestep = x[:, :, num_cond_latents:], timestep[:, num_cond_latents:]
        velocity = forward(noise, noise_timestep, context, options, context_mask, **kwargs)
        still = velocity.new_zeros(*velocity.shape[:2], num_cond_latents, *velocity.shape[3:])
        return torch.cat([still, velocity], dim=2)

    def clear(self) -> None:
        """Give the memory back."""
        for _, store in self.stores.values():
            store.clear()
        self.stores.clear()

    @torch.compiler.disable  # once per run: not worth a graph of its own
    def _store(self, forward: Callable[..., Tensor], condition: Tensor, context: Tensor, options: dict) -> Store:
        """Keys and values of condition frames `[1, 16, t, H, W]`, computed unless they are those of the last call."""
        source, store = self.stores.get(condition.device, (None, None))
        if store is not None and torch.equal(source, condition):
            return store
        if store is not None:
            self._say("LongCat KV Cache is rebuilt: the condition frames have changed.")
            store.clear()
        store = DeviceStore() if self.placement == "gpu" else HostStore(condition.device)
        # Already here, so that a run that stops while it is being filled gives the memory back.
        self.stores[condition.device] = condition.new_empty(0), store
        num_cond_latents = condition.shape[2]
        timestep = torch.zeros(1, num_cond_latents, device=condition.device)
        recording = {**options, KV_EXCHANGE: lambda index, k, v: keep(store, index, k, v)}
        forward(condition, timestep, context, recording, num_cond_latents=num_cond_latents)
        self.stores[condition.device] = condition.clone(), store
        return store

    def _say(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.add(sentence)
            logging.info(sentence)


@torch.compiler.disable  # looks at data
def why_not(condition: Tensor, transformer_options: dict[str, Any]) -> str | None:
    """Why a call with these condition frames `[B, 16, t, H, W]` cannot use the cache; None if it can."""
    if not condition.shape[2]:
        return "there are no condition frames"
    if "context_window" in transformer_options:
        return "context windows show the network other frames in every window"
    if transformer_options.get("patches_replace", {}).get("dit"):
        return "another node replaces blocks of the network"
    if not torch.equal(condition, condition[:1].expand_as(condition)):
        return "the videos of the batch begin with different frames"
    return None


def keep(store: Store, block_index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Write one block's keys and values `[1, heads, tokens, head_dim]`, and hand them on."""
    store.write(block_index, torch.stack([k, v]))
    return k, v


def prepend(kv: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Put cached keys and values `[2, 1, heads, t, head_dim]` in front of `[B, heads, N, head_dim]`."""
    cached_k, cached_v = kv.expand(-1, k.shape[0], -1, -1, -1)
    return torch.cat([cached_k, k], dim=2), torch.cat([cached_v, v], dim=2)


def moved_along(rope_options: dict[str, float] | None, num_latents: int) -> dict[str, float]:
    """Rotary options for a video whose first `num_latents` frames are not there."""
    options = rope_options or {}
    return {**options, "shift_t": options.get("shift_t", 0.0) + num_latents * options.get("scale_t", 1.0)}


@dataclass(frozen=True)
class CachedSampling:
    """Gives every sampling run of a model its own cache; a wrapper around ComfyUI's `CFGGuider.outer_sample`."""

    policy: Policy

    def __call__(
        self,
        sample: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Sample with a cache, if the latent begins with condition frames."""
        guider, arguments = sample.class_obj, (noise, latent_image, sampler, sigmas, denoise_mask, *args)
        num_cond_latents = leading_clean_frames(denoise_mask)
        if not num_cond_latents:
            return sample(*arguments, **kwargs)
        if changes_weights(guider.model_options):
            logging.info("LongCat KV Cache is not used: hooks change the weights during the run.")
            return sample(*arguments, **kwargs)

        model = guider.model_patcher.model
        size = cache_size(model, LatentShape(*latent_image.shape[2:]), num_cond_latents)
        needed = model.memory_required([1, *latent_image.shape[1:]])
        cache = KVCache(size, place(self.policy, size, needed, guider.model_patcher.load_device))
        logging.info("LongCat KV Cache: %.1f MB, placement %s.", size.total_bytes / 1e6, cache.placement)
        try:
            model.kv_cache = cache
            return sample(*arguments, **kwargs)
        finally:
            model.kv_cache = None
            cache.clear()


def changes_weights(model_options: dict[str, Any]) -> bool:
    """Whether hooks on the conditioning may change weights from step to step."""
    hooks = model_options.get("registered_hooks")
    return bool(hooks and hooks.get_type(comfy.hooks.EnumHookType.Weight))


def place(policy: Policy, size: CacheSize, needed_bytes: float, device: torch.device) -> Placement:
    """Where a cache goes; auto means on the device, unless that cannot hold it beside `needed_bytes` for a call.

    Weights do not count: ComfyUI streams those that do not fit, which costs no more than streaming the cache.
    """
    if policy != "auto":
        return policy
    total = comfy.model_management.get_total_memory(device)
    return "gpu" if size.total_bytes + needed_bytes <= total else "cpu"
