"""What the cache of condition frames gains: measured, and as the count of floating-point operations predicts it.

Times are processor time of one thread, so that other programs on the machine hardly count: the gain is a difference
of two times, in which their noise would be many times larger than in either.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from host.process import say
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longcat_core.network.kv_cache import KVCache
from longcat_core.network.stores import CacheSize

LATENT_CHANNELS = 16


class WrongCountError(Exception):
    """The formula for floating-point operations counts other ones than torch; the message gives the numbers."""


@dataclass(frozen=True)
class CacheResult:
    """Seconds of every repeat, the three calls of one repeat neighbouring in time, and operations of a call."""

    num_cond_latents: int
    num_latents: int
    without: Sequence[float]
    building: Sequence[float]
    cached: Sequence[float]
    flops_without: int
    flops_cached: int
    deviation: float

    @property
    def predicted(self) -> float:
        """Speed-up if every operation took the same time."""
        return self.flops_without / self.flops_cached

    @property
    def speed_ups(self) -> list[float]:
        """One per repeat."""
        return [without / cached for without, cached in zip(self.without, self.cached, strict=True)]

    @property
    def gain_shares(self) -> list[float]:
        """Of every repeat, the measured gain (speed-up - 1) over the predicted one."""
        return [(speed_up - 1) / (self.predicted - 1) for speed_up in self.speed_ups]

    @property
    def building_shares(self) -> list[float]:
        """Of every repeat, what building the cache took on top, over one call without it."""
        calls = zip(self.without, self.building, self.cached, strict=True)
        return [(building - cached) / without for without, building, cached in calls]


def measure(network: nn.Module, inputs: Sequence[Tensor], num_cond_latents: int, repeats: int) -> CacheResult:
    """Time calls of the pack's network without a cache, with one to build, and with that one, in turn, on one thread.

    Args:
        network: a `LongCatVideoTransformer` in fp32.
        inputs: latent `[B, 16, T, H, W]`, timestep `[B]`, text `[B, M, C]` and its mask `[B, M]`.
        num_cond_latents: how many of the T latent frames are given.
        repeats: of the three calls.

    Raises:
        WrongCountError: the formula and torch's counter disagree, so that nothing can be predicted.
    """
    x, timestep, context, mask = inputs
    timesteps = timestep[:, None].repeat(1, x.shape[2])
    timesteps[:, :num_cond_latents] = 0

    def call(cache: KVCache | None = None) -> Tensor:
        return network(x, timesteps, context, mask, num_cond_latents, kv_cache=cache)

    size = _cache_size(network, x, num_cond_latents)
    with torch.inference_mode():
        cache = KVCache(size, "gpu")
        call(cache)
        outputs, counted = zip(_counted(call), _counted(call, cache), strict=True)
        expected, found = (output[:, :, num_cond_latents:] for output in outputs)
        flops = [flops_of(network, x, context, num_cond_latents, has_cache) for has_cache in (False, True)]
        if tuple(flops) != counted:
            raise WrongCountError(f"The formula counts {flops} operations without and with the cache, torch {counted}.")

        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        without: list[float] = []
        building: list[float] = []
        cached: list[float] = []
        for repeat in range(repeats):
            say(f"KV cache, {num_cond_latents} latents: {repeat + 1}/{repeats}")
            cache.clear()
            for times, options in ((without, None), (building, cache), (cached, cache)):
                started = time.process_time()
                call(options)
                times.append(time.process_time() - started)
        torch.set_num_threads(num_threads)
    deviation = ((found - expected).abs().max() / expected.abs().max()).item()
    return CacheResult(num_cond_latents, x.shape[2], without, building, cached, *counted, deviation)


def _cache_size(network: Any, x: Tensor, num_cond_latents: int) -> CacheSize:
    tokens = num_cond_latents * _tokens_per_frame(network, x)
    return CacheSize(tokens, network.hidden_size, len(network.blocks), x.itemsize)


def _tokens_per_frame(network: Any, x: Tensor) -> int:
    return x.shape[3] // network.patch_size[1] * (x.shape[4] // network.patch_size[2])


def _counted(call: Callable[..., Tensor], *args: Any) -> tuple[Tensor, int]:
    # torch counts every attention kernel but the CPU's; the plain one consists of matrix products, which it counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = call(*args)
    return output, counter.get_total_flops()


def flops_of(network: Any, x: Tensor, context: Tensor, num_cond_latents: int, has_cache: bool) -> int:
    """Floating-point operations of all matrix products of one call, a multiplication and an addition counting 2.

    With a built cache, condition tokens are keys of the noise tokens' self-attention and nothing else. Without one
    they take part in everything but cross-attention, and attend to each other.
    """
    batch, frames, per_frame = x.shape[0], x.shape[2], _tokens_per_frame(network, x)
    block, text, hidden = network.blocks[0], context.shape[1], network.hidden_size
    ffn, adaln = block.ffn.w1.out_features, block.adaLN_modulation[1].in_features
    patch_values = LATENT_CHANNELS * network.patch_size[1] * network.patch_size[2]

    cond = num_cond_latents * per_frame
    noise = frames * per_frame - cond
    if has_cache:
        frames -= num_cond_latents
    tokens = frames * per_frame

    self_attention = tokens * 4 * hidden**2 + 2 * hidden * (noise * (noise + cond) + (0 if has_cache else cond**2))
    cross_attention = (noise + text) * 2 * hidden**2 + 2 * hidden * noise * text
    feed_forward = tokens * 3 * hidden * ffn
    modulation = frames * adaln * 6 * hidden
    blocks = len(network.blocks) * (self_attention + cross_attention + feed_forward + modulation)

    time_mlp = frames * sum(network.t_embedder.mlp[index].weight.numel() for index in (0, 2))
    text_mlp = text * sum(network.y_embedder.y_proj[index].weight.numel() for index in (0, 2))
    patches = tokens * 2 * patch_values * hidden  # in and out
    return 2 * batch * (blocks + time_mlp + text_mlp + patches + frames * adaln * 2 * hidden)
