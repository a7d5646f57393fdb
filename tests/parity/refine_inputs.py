"""What the reference starts refinement from, with the pack's geometry and a stand-in for the VAE.

Source: meituan-longcat/LongCat-Video, `generate_refine` and `prepare_latents`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from longcat_core.frames.comfyui import LATENT_FORMAT
from longcat_core.frames.geometry import SPATIAL_SCALE, TEMPORAL_SCALE, latent_frames
from longcat_core.frames.refine import RefineFrames, padded, refined_length, upscaled


def encoded(video: Tensor, channels: Tensor) -> Tensor:
    """A stand-in for the VAE, normalised: averages over what becomes one latent, mixed by `channels` `[16, 3]`.

    Args:
        video: `[F, H, W, 3]` in 0..1, F = 4n+1.
        channels: weights of the colors in every latent channel.

    Returns:
        `[1, 16, n + 1, H / 8, W / 8]`.
    """
    x = (video * 2 - 1).movedim(-1, 0).unsqueeze(0)
    rest = x[:, :, 1:].unflatten(2, (latent_frames(len(video)) - 1, TEMPORAL_SCALE)).mean(3)
    folded = functional.avg_pool3d(torch.cat([x[:, :, :1], rest], dim=2), (1, SPATIAL_SCALE, SPATIAL_SCALE))
    return LATENT_FORMAT.process_in(torch.einsum("lc,bcthw->blthw", channels, folded))


def refine_frames(inputs: dict[str, Tensor], args: dict) -> RefineFrames:
    """The frames of a case."""
    mode = "spatial" if args.get("spatial_refine_only") else "spatial+temporal"
    return RefineFrames(refined_length(len(inputs["stage1_video"]), mode), args.get("num_cond_frames", 0))


def refine_start(inputs: dict[str, Tensor], args: dict) -> tuple[Tensor, int]:
    """The latent that refining starts from `[1, 16, T, H, W]`, and how many of its frames are given."""
    frames = refine_frames(inputs, args)
    video = upscaled(inputs["stage1_video"].float() / 255, frames.num_frames, *args["hw"])
    clean = encoded(padded(video, frames.front, frames.back), inputs["M"])
    latents = (1 - args["t_thresh"]) * clean + args["t_thresh"] * inputs["noise"]
    if frames.num_cond_frames:
        given = inputs["cond_video"][-frames.num_cond_frames :].float() / 255
        latents[:, :, : frames.num_cond_latents] = encoded(padded(given, frames.front), inputs["M"])
    return latents, frames.num_cond_latents
