"""Deliberate mistakes of the kinds that LongCat-Video implementations really make.

Each is one change to the running pack or to how it is called; `test_sensitivity.py` shows which checks notice it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.latent_formats
import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from torch import Tensor

from longcat_core import guidance, schedule
from longcat_core.comfyui import model_base
from longcat_core.frames.geometry import TokenGrid
from longcat_core.network import attention, rope
from longcat_core.network import dit as model
from longcat_core.network.call import Call

Patch = pytest.MonkeyPatch


class Breakage(NamedTuple):
    """A mistake."""

    name: str
    apply: Callable[[Patch], None]
    """Makes it, until the patch is undone."""
    num_cond_latents: int = 0
    """Condition frames of the videos that are made with it: 0 is text to video, 1 is image to video."""


def replace(patch: Patch, owner: Any, name: str, make: Callable[[Callable], Callable]) -> None:
    """Put `make(original)` in the place of a function."""
    patch.setattr(owner, name, make(getattr(owner, name)))


def flipped_sign(patch: Patch) -> None:
    """The network's `clean - noise` is handed on as it is."""
    replace(patch, model.LongCatVideoTransformer, "unpatchify", lambda f: lambda *args: -f(*args))


def timestep_of_one(patch: Patch) -> None:
    """The network is told sigma instead of 1000 sigma."""
    replace(patch, model.TimestepEmbedder, "forward", lambda f: lambda self, timestep: f(self, timestep / 1000))


def noisy_condition_timestep(patch: Patch) -> None:
    """Condition frames get the timestep of the others."""

    def process(self: Any, timestep: Tensor, x: Tensor, **kwargs: Any) -> Tensor:
        return timestep.view(-1, 1).repeat(1, x.shape[2])

    patch.setattr(model_base.LongCatVideoModel, "process_timestep", process)


def without_condition(call: Call) -> Call:
    """A call none of whose frames are given."""
    return dataclasses.replace(call, num_cond_latents=0)


def open_condition_attention(patch: Patch) -> None:
    """Condition tokens see the noise tokens."""
    replace(
        patch,
        attention,
        "prefix_causal_attention",
        lambda f: lambda q, k, v, call, options: f(q, k, v, without_condition(call), options),
    )


def condition_sees_text(patch: Patch) -> None:
    """Cross-attention writes to the condition tokens too."""

    replace(
        patch,
        model.Block,
        "noise_tokens_see_text",
        lambda f: lambda self, x, context, call, options: f(self, x, context, without_condition(call), options),
    )


def swapped_rope_axes(patch: Patch) -> None:
    """Positions in (width, height, time) order."""
    replace(patch, rope, "positions", lambda f: lambda *args: f(*args).flip(-1))


def rope_by_halves(patch: Patch) -> None:
    """The two halves of a head rotate together instead of neighbouring channels."""

    def mixed(x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

    def restored(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)

    def by_halves(apply_rope: Callable) -> Callable:
        return lambda q, k, freqs: tuple(restored(x) for x in apply_rope(mixed(q), mixed(k), freqs))

    replace(patch, attention, "apply_rope", by_halves)


def patch_order(patch: Patch) -> None:
    """Output channels before the place in the patch."""

    def unpatchify(self: Any, patches: Tensor, grid: TokenGrid) -> Tensor:
        (pt, ph, pw), channels = self.patch_size, self.out_channels
        x = patches.view(-1, *grid, channels, pt, ph, pw).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.reshape(-1, channels, grid.frames * pt, grid.height * ph, grid.width * pw)

    patch.setattr(model.LongCatVideoTransformer, "unpatchify", unpatchify)


def masked_padding(patch: Patch) -> None:
    """Text padding is hidden instead of attended as zeros."""

    def embed(f: Callable) -> Callable:
        def call(self: Any, context: Tensor, mask: Tensor | None) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(self, "text_tokens_zero_pad", False)
                return f(self, context, mask)

        return call

    replace(patch, model.LongCatVideoTransformer, "embed_text", embed)


def shuffled_prompts(patch: Patch) -> None:
    """Every video of a batch gets the prompt of another."""

    def rolled(f: Callable) -> Callable:
        return lambda self, **kwargs: f(self, **{**kwargs, "cross_attn": kwargs["cross_attn"].roll(1, 0)})

    replace(patch, model_base.LongCatVideoModel, "extra_conds", rolled)


def swapped_mean_and_std(patch: Patch) -> None:
    """The VAE's latents are moved by their deviation and scaled by their mean."""
    wan = comfy.latent_formats.Wan21
    patch.setattr(wan, "process_in", lambda self, latent: (latent - self.latents_std) / self.latents_mean)
    patch.setattr(wan, "process_out", lambda self, latent: latent * self.latents_mean + self.latents_std)


def shift_of_3(patch: Patch) -> None:
    """The shift of many other flow models."""
    replace(patch, schedule, "sigmas", lambda f: lambda mode, steps, shift=12.0, *args: f(mode, steps, 3.0, *args))


def simple_scheduler(patch: Patch) -> None:
    """Core's scheduler of this name, at the right shift."""

    def simple(mode: str, steps: int, shift: float = 12.0, *args: Any) -> Tensor:
        sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
        sampling.set_parameters(shift=shift)
        return comfy.samplers.calculate_sigmas(sampling, "simple", steps)

    patch.setattr(schedule, "sigmas", simple)


def plain_guidance(patch: Patch) -> None:
    """Ordinary classifier-free guidance instead of CFG-zero*."""
    replace(patch, guidance, "projection_scale", lambda f: lambda *args: torch.ones_like(f(*args)))


def no_guidance(patch: Patch) -> None:
    """The guidance scale is ignored."""
    replace(patch, comfy.samplers.CFGGuider, "set_cfg", lambda f: lambda self, cfg: f(self, 1.0))


BREAKAGES = (
    Breakage("prompts shuffled", shuffled_prompts),
    Breakage("velocity with the sign flipped", flipped_sign),
    Breakage("timestep in 0..1", timestep_of_one),
    Breakage("timestep of condition frames not 0", noisy_condition_timestep, num_cond_latents=1),
    Breakage("condition frames attend to all", open_condition_attention, num_cond_latents=1),
    Breakage("condition frames see the text", condition_sees_text, num_cond_latents=1),
    Breakage("RoPE axes swapped", swapped_rope_axes),
    Breakage("RoPE by halves", rope_by_halves),
    Breakage("channels before patch", patch_order),
    Breakage("text padding masked, not zeroed", masked_padding),
    Breakage("latent mean and std swapped", swapped_mean_and_std),
    Breakage("shift 3", shift_of_3),
    Breakage("core's simple scheduler", simple_scheduler),
    Breakage("plain CFG", plain_guidance),
    Breakage("no guidance", no_guidance),
)
