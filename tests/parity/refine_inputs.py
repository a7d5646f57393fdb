"""What the reference prepares before it refines a video: the latent that its sampling starts from.

The video is stretched to the new size, brought to twice its frames (unless only its size is refined), padded so that
condition and noise latents are multiples of 4 (what block sparse attention needs), encoded, and mixed with noise.
Condition frames, the end of another video at the new size, replace the first latents.

Source: meituan-longcat/LongCat-Video, `generate_refine` and `prepare_latents`. The VAE is a stand-in.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from longcat_core.condition import LATENT_FORMAT
from longcat_core.geometry import SPATIAL_SCALE, TEMPORAL_SCALE, latent_frames

LATENT_MULTIPLE = 4


class Padding(NamedTuple):
    """Frames that repeat the first and the last one, and the latents that condition frames then fill."""

    front: int
    back: int
    num_cond_latents: int


def padding(num_frames: int, num_cond_frames: int) -> Padding:
    """Padding of a video of `num_frames`, of which the first `num_cond_frames` are given (0: none)."""
    front = num_cond_latents = 0
    if num_cond_frames:
        num_cond_latents = up_to_multiple(1 + math.ceil((num_cond_frames - 1) / TEMPORAL_SCALE))
        front = 1 + (num_cond_latents - 1) * TEMPORAL_SCALE - num_cond_frames
    num_noise_frames = num_frames - num_cond_frames
    num_noise_latents = up_to_multiple(math.ceil(num_noise_frames / TEMPORAL_SCALE))
    return Padding(front, num_noise_latents * TEMPORAL_SCALE - num_noise_frames, num_cond_latents)


def up_to_multiple(num_latents: int) -> int:
    """The next multiple of 4."""
    return math.ceil(num_latents / LATENT_MULTIPLE) * LATENT_MULTIPLE


def resized(video: Tensor, num_frames: int, size: tuple[int, int]) -> Tensor:
    """Frames `[F, H, W, 3]` in 0..255 to `[1, 3, num_frames, *size]` in -1..1: first the size, then the frames."""
    stretched = functional.interpolate(video.movedim(-1, 1), size=size, mode="bilinear", align_corners=True) / 255
    frames = stretched.movedim(1, 0).unsqueeze(0)
    return functional.interpolate(frames, size=(num_frames, *size), mode="trilinear", align_corners=True) * 2 - 1


def padded(video: Tensor, front: int, back: int = 0) -> Tensor:
    """`[1, 3, F, H, W]` with its first and last frame repeated."""
    return functional.pad(video, (0, 0, 0, 0, front, back), mode="replicate")


def encoded(video: Tensor, channels: Tensor) -> Tensor:
    """A stand-in for the VAE, normalised: averages over what becomes one latent, mixed by `channels` `[16, 3]`.

    Args:
        video: `[1, 3, F, H, W]` in -1..1; of frames after the last full group of 4 nothing remains, as in Wan's VAE.
        channels: weights of the colors in every latent channel.

    Returns:
        `[1, 16, 1 + (F - 1) // 4, H / 8, W / 8]`.
    """
    groups = latent_frames(video.shape[2]) - 1
    rest = video[:, :, 1 : 1 + groups * TEMPORAL_SCALE].unflatten(2, (groups, TEMPORAL_SCALE)).mean(3)
    folded = functional.avg_pool3d(torch.cat([video[:, :, :1], rest], dim=2), (1, SPATIAL_SCALE, SPATIAL_SCALE))
    return LATENT_FORMAT.process_in(torch.einsum("lc,bcthw->blthw", channels, folded))


def refine_start(inputs: dict[str, Tensor], args: dict) -> tuple[Tensor, int]:
    """The latent that refining starts from `[1, 16, T, H, W]`, and how many of its frames are given."""
    video, num_cond_frames = inputs["stage1_video"].float(), args.get("num_cond_frames", 0)
    num_frames = len(video) if args.get("spatial_refine_only") else 2 * len(video)
    front, back, num_cond_latents = padding(num_frames, num_cond_frames)
    upscaled = encoded(padded(resized(video, num_frames, tuple(args["hw"])), front, back), inputs["M"])
    latents = (1 - args["t_thresh"]) * upscaled + args["t_thresh"] * inputs["noise"]
    if num_cond_frames:
        given = inputs["cond_video"][-num_cond_frames:].float() / 255 * 2 - 1
        latents[:, :, :num_cond_latents] = encoded(padded(given.permute(3, 0, 1, 2)[None], front), inputs["M"])
    return latents, num_cond_latents
