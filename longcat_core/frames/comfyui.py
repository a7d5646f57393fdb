"""What frames and latents take from ComfyUI: how it normalises the latents of the Wan 2.1 VAE, and how it resizes."""

import comfy.latent_formats
import comfy.utils
from torch import Tensor

from .buckets import Size

LATENT_FORMAT = comfy.latent_formats.Wan21()


def stretched(frames: Tensor, target: Size) -> Tensor:
    """Frames `[F, H, W, C]` resized with Lanczos as the reference does: each side on its own."""
    return _resized(frames, target, crop="disabled")


def filled(frames: Tensor, target: Size) -> Tensor:
    """Frames `[F, H, W, C]` resized with Lanczos to cover the target; what stands over is cut off."""
    return _resized(frames, target, crop="center")


def _resized(frames: Tensor, target: Size, crop: str) -> Tensor:
    if tuple(frames.shape[1:3]) == target:
        return frames
    resized = comfy.utils.common_upscale(frames.movedim(-1, 1), target.width, target.height, "lanczos", crop)
    return resized.movedim(1, -1)
