"""Latents of the size of the video, empty or beginning with given frames."""

from typing import Any

import comfy.model_management
import nodes
import torch
from comfy_api.latest import io
from torch import Tensor

from ..longcat_core.frames import buckets
from ..longcat_core.frames.comfyui import filled, stretched
from ..longcat_core.frames.geometry import LATENT_CHANNELS, TEMPORAL_SCALE, PixelShape
from ..longcat_core.frames.given import DEFAULT_COND_FRAMES, given_frames, rgb
from ..longcat_core.frames.latents import video_latent
from ..longcat_core.frames.shown import is_padded
from ..longcat_core.frames.waiting import continued, with_condition
from .checks import check_latent, checked
from .inputs import (
    CUSTOM,
    SIZES,
    check_continuation,
    check_size,
    cond_frames_input,
    frame_inputs,
    frame_size,
    length_input,
    size_input,
)


def encoded(vae: Any, frames: Tensor) -> Tensor:
    """Frames `[F, H, W, 3]`, 4n+1 of them, as a latent `[1, 16, n+1, H/8, W/8]`.

    Raises:
        ValueError: the VAE is missing, or another model's.
    """
    if vae is None:
        raise ValueError("The given frames must be encoded, but no VAE is connected: connect the model's VAE.")
    latents = vae.encode(frames).to(comfy.model_management.intermediate_device())
    expected = (1, LATENT_CHANNELS, *PixelShape(*frames.shape[:3]).latent())
    if tuple(latents.shape) != expected:
        raise ValueError(
            f"The connected VAE encodes the frames to shape {tuple(latents.shape)}, LongCat-Video needs {expected}: it "
            f"is not the Wan 2.1 VAE. Take VAE from LongCat Loader, or Load VAE with wan_2.1_vae."
        )
    return latents


def continuing(vae: Any, frames: Tensor, num_cond_frames: int, target: buckets.Size, size: str, length: int) -> dict:
    """A LATENT that begins with the end of a video `[F, H, W, C]`, or with an image.

    Raises:
        ValueError: as `encoded`, `given_frames` and `PixelShape.latent`.
    """
    shape = PixelShape(length, *target).latent()
    given = rgb(given_frames(frames, num_cond_frames, length))
    fitted = filled(given, target) if size == CUSTOM else stretched(given, target)
    return with_condition(encoded(vae, fitted), shape)


def starting_latent(
    width: int,
    height: int,
    length: int,
    batch_size: int = 1,
    vae: Any = None,
    frames: Tensor | None = None,
    num_cond_frames: int = DEFAULT_COND_FRAMES,
    size: str = CUSTOM,
) -> dict[str, Any]:
    """The LATENT that sampling starts from: zeros, which samplers take for "nothing given", or frames and a mask.

    Args:
        width, height: pixels of one frame, or with a trained `size` the shape that a video without frames has.
        length: frames of the video, the given ones included; 4n+1.
        batch_size: videos in it.
        vae: encodes the given frames; not needed without them.
        frames: an image, or a video whose end comes first, `[F, H, W, C]`.
        num_cond_frames: how many frames of a video come first, 4n+1.
        size: custom, or the resolution whose trained size is taken.

    Raises:
        ValueError: as `frame_size`, `PixelShape.latent` and `continuing`.
    """
    target = frame_size(SIZES[size], width, height, frames)
    if frames is None:
        shape = PixelShape(length, *target).latent()
        device = comfy.model_management.intermediate_device()
        return video_latent(torch.zeros([batch_size, LATENT_CHANNELS, *shape], device=device))
    latent = continuing(vae, frames, num_cond_frames, target, size, length)
    return nodes.RepeatLatentBatch().repeat(latent, batch_size)[0]


@checked(check_size)
class LongCatLatent(io.ComfyNode):
    """Size, length [, VAE, frames] -> LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatLatent",
            display_name="LongCat Latent",
            category="model/latent/longcat",
            description="What sampling starts from: an empty latent for text-to-video; with an image, image-to-video; "
            "with a video, its continuation. The given frames come first; the network sees them unchanged.",
            search_aliases=[
                *("empty latent longcat", "longcat size", "video length", "text to video latent"),
                *("image to video", "i2v longcat", "video continuation", "extend video", "start image"),
            ],
            inputs=[
                *frame_inputs(),
                length_input("Frames at 15 per second, 4n+1, the given ones included. Trained up to 93 (6.2 s)."),
                io.Int.Input("batch_size", default=1, min=1, max=64, optional=True, tooltip="Videos made at once."),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the frames; not needed without them."),
                io.Image.Input(
                    "frames",
                    optional=True,
                    tooltip="An image to animate, or a video (15 frames per second) to continue from its end.",
                ),
                cond_frames_input(
                    "How many of the video's last frames to continue from, 4n+1 (rounded down); trained with 13. An "
                    "image is always 1.",
                    optional=True,
                ),
                size_input(
                    SIZES,
                    "480p or 720p: the trained size nearest in shape to the frames, which are stretched to it; "
                    "without frames, to width x height. custom: width x height, the frames' edges are cut off to "
                    "fill it.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="What sampling starts from: empty, or the encoded frames and a noise mask.")
            ],
        )

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        length: int,
        batch_size: int = 1,
        vae: Any = None,
        frames: Tensor | None = None,
        num_cond_frames: int = DEFAULT_COND_FRAMES,
        size: str = CUSTOM,
    ) -> io.NodeOutput:
        """Begin."""
        latent = starting_latent(width, height, length, batch_size, vae, frames, num_cond_frames, size)
        return io.NodeOutput(latent)


@checked(check_continuation)
class LongCatContinueLatent(io.ComfyNode):
    """LATENT -> LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatContinueLatent",
            display_name="LongCat Continue Latent",
            category="model/latent/longcat",
            description="Continues a sampled video: the end of its latent becomes the beginning of the next one, "
            "without decoding and encoding it, so that colors do not drift. Join the decoded segments with LongCat "
            "Join.",
            search_aliases=["extend video", "continue video", "video continuation latent", "longcat extend", "overlap"],
            inputs=[
                io.Latent.Input("latent", tooltip="The finished segment, from the sampler."),
                length_input(
                    "Frames of the next segment, 4n+1, its condition frames included. Trained up to 93.",
                    least=1 + TEMPORAL_SCALE,
                ),
                cond_frames_input("How many frames the two segments share, 4n+1 (rounded down); trained with 13."),
            ],
            outputs=[
                io.Latent.Output(tooltip="What sampling starts from: the shared frames, room for more, a noise mask.")
            ],
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], length: int, num_cond_frames: int) -> io.NodeOutput:
        """Cut the end off and put it in front."""
        check_latent(latent, "LongCat Continue Latent")
        if is_padded(latent):
            raise ValueError(
                "The latent is a refined video, which ends with padding. Continue the video before it is refined; to "
                "refine the next segment, connect the frames of this one to LongCat Refine Latent (condition_frames)."
            )
        return io.NodeOutput(continued(latent["samples"], length, num_cond_frames))
