"""A cache for every sampling run: what the node *LongCat KV Cache* puts around ComfyUI's sampling."""

import logging
from dataclasses import dataclass
from typing import Any, Literal, get_args

import comfy.hooks
import comfy.model_management
import torch
from torch import Tensor

from ..frames.geometry import LatentShape
from ..frames.latents import leading_clean_frames
from ..network.kv_cache import KVCache
from ..network.stores import CacheSize, Placement
from .run import Run

Policy = Literal["auto", "gpu", "cpu"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


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
            model.run = Run(cache=cache)
            return sample(*arguments, **kwargs)
        finally:
            model.run = None
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
