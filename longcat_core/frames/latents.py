"""Latents that begin with given frames.

The given frames are the leading latent frames of an ordinary ComfyUI latent, and its noise mask is 0 there: every
leading, fully masked frame is a condition frame to the model (`model_base.py`). The rest waits for noise.
"""

from typing import Any

import torch
from torch import Tensor

from .geometry import SPATIAL_SCALE
from .shown import ALL_FRAMES, SHOWN_FRAMES


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


def video_latent(samples: Tensor, shown: tuple[int, int] | None = ALL_FRAMES) -> dict[str, Any]:
    """The LATENT of samples `[B, 16, T, H, W]`, and which of its frames are no padding."""
    return {"samples": samples, "downscale_ratio_spacial": SPATIAL_SCALE, SHOWN_FRAMES: shown}


def beginning_with(condition: Tensor, samples: Tensor, shown: tuple[int, int] | None = ALL_FRAMES) -> dict[str, Any]:
    """A LATENT like `samples` `[B, 16, T, H, W]` whose first frames are given: `condition` `[B, 16, t, H, W]`."""
    num_cond_latents = condition.shape[2]
    mask = torch.ones(samples.shape[0], 1, *samples.shape[2:], device=condition.device)
    mask[:, :, :num_cond_latents] = 0
    samples = torch.cat([condition, samples[:, :, num_cond_latents:]], dim=2)
    return {**video_latent(samples, shown), "noise_mask": mask}
