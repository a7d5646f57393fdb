"""Latents that wait for noise, alone or behind given frames."""

from typing import Any

import torch
from torch import Tensor

from .comfyui import LATENT_FORMAT
from .geometry import LATENT_CHANNELS, LatentShape, latent_frames
from .given import check_leaves_room, whole_latents
from .latents import beginning_with

ROUNDING = 2**-7
"""Of a value that was rounded to bf16, the coarsest dtype of latents, before and after being interpolated."""


def waiting_latent(shape: LatentShape, device: torch.device) -> Tensor:
    """A latent `[1, 16, T, H, W]` that is zero to the network.

    ComfyUI normalises what a VAE gives before sampling, unless all of it is zero; where condition frames stand in
    front, zeros would become something else.
    """
    return LATENT_FORMAT.process_out(torch.zeros(1, LATENT_CHANNELS, *shape, device=device))


def is_waiting(samples: Tensor) -> bool:
    """Whether the last frame of a latent `[B, 16, T, H, W]` is what no sampler has touched.

    Such a frame holds one value per channel, zero or that of `waiting_latent`, and keeps it through every harmless
    round trip but for rounding: saving, another dtype, resizing, normalising and back, repeating, cutting along time.
    A frame that was sampled varies over space, and so does an encoded one at its edges; even an encoded frame of one
    color, the flattest there is, differs in its channels by hundreds of times the rounding.
    """
    last = samples[:, :, -1:].float()
    waiting = waiting_latent(LatentShape(1, 1, 1), last.device)
    tolerance = ROUNDING * waiting.abs()
    return any(bool(((last - value).abs() <= tolerance).all()) for value in (torch.zeros_like(waiting), waiting))


def with_condition(condition: Tensor, shape: LatentShape) -> dict[str, Any]:
    """A LATENT of `shape` whose first frames are `condition` `[B, 16, t, H, W]`, as the VAE or a sampler gave it."""
    waiting = waiting_latent(shape, condition.device).to(condition.dtype)
    return beginning_with(condition, waiting.expand(condition.shape[0], -1, -1, -1, -1))


def continued(samples: Tensor, length: int, num_cond_frames: int) -> dict[str, Any]:
    """A LATENT of `length` frames that begins with the end of a finished one `[B, 16, T, H, W]`.

    Raises:
        ValueError: the finished one is shorter than the condition frames, or they leave nothing to generate.
    """
    num_cond_frames = whole_latents(num_cond_frames)
    check_leaves_room(num_cond_frames, length)
    finished = LatentShape(*samples.shape[2:])
    if finished.frames < latent_frames(num_cond_frames):
        raise ValueError(
            f"The latent holds {finished.pixels().frames} frames and num_cond_frames is {num_cond_frames}. Set "
            f"num_cond_frames to {finished.pixels().frames} or less."
        )
    shape = finished._replace(frames=latent_frames(length))
    return with_condition(samples[:, :, -latent_frames(num_cond_frames) :], shape)
