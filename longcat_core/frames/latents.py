"""Latents that begin with given frames.

The given frames are the leading latent frames of an ordinary ComfyUI latent, and its noise mask is 0 there: every
leading, fully masked frame is a condition frame to the model (`model_base.py`). The rest waits for noise.
"""

import logging
from typing import Any

import comfy.latent_formats
import comfy.utils
import torch
from torch import Tensor

from . import buckets
from .geometry import (
    LATENT_CHANNELS,
    LENGTH_GRID,
    SPATIAL_SCALE,
    TEMPORAL_SCALE,
    LatentShape,
    latent_frames,
)

DEFAULT_COND_FRAMES = 13  # what the reference continues videos with
LATENT_FORMAT = comfy.latent_formats.Wan21()
CONDITION_NOISE_SEED = 0x9E3779B97F4A7C15  # added to a video's seed, so that the two noises have nothing in common


def leading_clean_frames(denoise_mask: Tensor | None) -> int:
    """Latent frames at the start that a mask `[B, C, T, H, W]` (1 = generate) keeps entirely; 0 if it keeps them all.

    With every frame kept there is nothing to generate and nothing to condition.
    """
    if denoise_mask is None:
        return 0
    kept = (denoise_mask.amax(dim=(0, 1, 3, 4)) == 0).tolist()
    return kept.index(False) if False in kept else 0


def leading_window_frames(index_list: list[int], num_cond_latents: int) -> int:
    """Condition frames at the start of a context window made of the frames `index_list`; 0 if it has no others."""
    is_cond = [index < num_cond_latents for index in index_list]
    return is_cond.index(False) if False in is_cond else 0


def waiting_latent(shape: LatentShape, device: torch.device) -> Tensor:
    """A latent `[1, 16, T, H, W]` that is zero to the network.

    ComfyUI normalises what a VAE gives before sampling, unless all of it is zero; where condition frames stand in
    front, zeros would become something else.
    """
    return LATENT_FORMAT.process_out(torch.zeros(1, LATENT_CHANNELS, *shape, device=device))


def is_waiting(samples: Tensor) -> bool:
    """Whether the last frame of a latent `[B, 16, T, H, W]` is what no sampler has touched."""
    last = samples[:, :, -1:]
    untouched = waiting_latent(LatentShape(*last.shape[2:]), last.device)
    return not last.any() or torch.equal(last, untouched.to(last.dtype).expand_as(last))


def with_condition(condition: Tensor, shape: LatentShape) -> dict[str, Any]:
    """A LATENT of `shape` whose first frames are `condition` `[B, 16, t, H, W]`, as the VAE or a sampler gave it."""
    waiting = waiting_latent(shape, condition.device).to(condition.dtype)
    return beginning_with(condition, waiting.expand(condition.shape[0], -1, -1, -1, -1))


def beginning_with(condition: Tensor, samples: Tensor) -> dict[str, Any]:
    """A LATENT like `samples` `[B, 16, T, H, W]` whose first frames are given: `condition` `[B, 16, t, H, W]`."""
    num_cond_latents = condition.shape[2]
    mask = torch.ones(samples.shape[0], 1, *samples.shape[2:], device=condition.device)
    mask[:, :, :num_cond_latents] = 0
    samples = torch.cat([condition, samples[:, :, num_cond_latents:]], dim=2)
    return {"samples": samples, "noise_mask": mask, "downscale_ratio_spacial": SPATIAL_SCALE}


def whole_latents(num_cond_frames: int) -> int:
    """`num_cond_frames` rounded down to 4n+1, since a latent frame is the first frame or four later ones.

    Raises:
        ValueError: it is less than 1.
    """
    if num_cond_frames < 1:
        raise ValueError(f"num_cond_frames is {num_cond_frames}; it must be at least 1.")
    rounded = LENGTH_GRID.floor(num_cond_frames)
    if rounded != num_cond_frames:
        logging.warning("LongCat: num_cond_frames must be 4n+1; %s was rounded to %s.", num_cond_frames, rounded)
    return rounded


def check_leaves_room(num_cond_frames: int, length: int) -> None:
    """Raise ValueError if condition frames leave nothing to generate in a video of `length` frames."""
    if num_cond_frames >= length:
        lower = "Lower num_cond_frames, or raise" if num_cond_frames > 1 else "Raise"
        raise ValueError(
            f"{num_cond_frames} condition frames leave nothing to generate in a video of {length} frames. {lower} "
            f"length to at least {num_cond_frames + TEMPORAL_SCALE}."
        )


def given_frames(frames: Tensor, num_cond_frames: int, length: int) -> Tensor:
    """The frames to go on from `[F, H, W, C]`: an image as it is, of a video the last `num_cond_frames`.

    Raises:
        ValueError: the video is shorter than that, or nothing would be left to generate.
    """
    if not len(frames):
        raise ValueError("The given video has no frames: connect an image, or a video that has some.")
    num_cond_frames = 1 if len(frames) == 1 else whole_latents(num_cond_frames)
    if len(frames) < num_cond_frames:
        raise ValueError(
            f"The video has {len(frames)} frames and num_cond_frames is {num_cond_frames}. Connect a longer video, or "
            f"set num_cond_frames to {LENGTH_GRID.floor(len(frames))}; 1 goes on from its last frame alone."
        )
    check_leaves_room(num_cond_frames, length)
    return frames[-num_cond_frames:]


def stretched(frames: Tensor, target: buckets.Size) -> Tensor:
    """Frames `[F, H, W, C]` resized with Lanczos as the reference does: each side on its own."""
    return _resized(frames, target, crop="disabled")


def filled(frames: Tensor, target: buckets.Size) -> Tensor:
    """Frames `[F, H, W, C]` resized with Lanczos to cover the target; what stands over is cut off."""
    return _resized(frames, target, crop="center")


def _resized(frames: Tensor, target: buckets.Size, crop: str) -> Tensor:
    if tuple(frames.shape[1:3]) == target:
        return frames
    return comfy.utils.common_upscale(frames.movedim(-1, 1), target.width, target.height, "lanczos", crop).movedim(
        1, -1
    )


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


def lightly_noised(condition: Tensor, sigma: float, seed: int) -> Tensor:
    """Condition frames `[B, 16, t, H, W]` with noise: `(1 - sigma) * clean + sigma * noise` as the model sees them.

    Their timestep stays 0. Training did the same, so that small errors of one segment are not taken for detail by the
    next (the authors in meituan-longcat/LongCat-Video issue 4).
    """
    generator = torch.Generator().manual_seed((seed + CONDITION_NOISE_SEED) % 2**64)
    noise = torch.randn(condition.shape, generator=generator).to(condition)
    return LATENT_FORMAT.process_out((1 - sigma) * LATENT_FORMAT.process_in(condition) + sigma * noise)


def color_anchored(samples: Tensor, anchor: Tensor, strength: float) -> Tensor:
    """Move mean and spread of every latent channel towards those of `anchor`; both `[B, 16, T, H, W]`.

    Color and brightness live in these statistics (adaptive instance normalisation, arXiv 1703.06868); strength 1
    replaces them, 0 keeps the samples.
    """
    if not strength:
        return samples
    dims = (2, 3, 4)
    spread, mean = torch.std_mean(samples, dims, keepdim=True)
    anchor_spread, anchor_mean = torch.std_mean(anchor, dims, keepdim=True)
    return torch.lerp(samples, (samples - mean) / spread.clamp_min(1e-6) * anchor_spread + anchor_mean, strength)
