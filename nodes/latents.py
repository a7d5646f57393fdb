"""Latents of the size of the video, empty or beginning with given frames."""

from typing import Any

import comfy.model_management
import nodes
import torch
from comfy_api.latest import io
from torch import Tensor

from ..longcat_core.frames import buckets
from ..longcat_core.frames import latents as condition
from ..longcat_core.frames.geometry import (
    LATENT_CHANNELS,
    LENGTH_GRID,
    PIXEL_MULTIPLE,
    SPATIAL_SCALE,
    TEMPORAL_SCALE,
    LatentShape,
    PixelShape,
)
from ..longcat_core.frames.latents import DEFAULT_COND_FRAMES
from ..longcat_core.frames.refine import SHOWN_FRAMES
from .checks import check_inputs, check_latent, check_when_run, rgb

CUSTOM = "custom"
SIZES = (CUSTOM, *buckets.RESOLUTIONS)
LINKED_LENGTH = 1 + TEMPORAL_SCALE * nodes.MAX_RESOLUTION  # for one that is not known yet: has room for any overlap


def video_shape(width: int = PIXEL_MULTIPLE, height: int = PIXEL_MULTIPLE, length: int = 1) -> LatentShape:
    """Latent shape of a video in pixels and frames; raises ValueError as `PixelShape.latent`."""
    return PixelShape(length, height, width).latent()


def check_size(width: int = PIXEL_MULTIPLE, height: int = PIXEL_MULTIPLE, length: int = 1, size: str = CUSTOM) -> None:
    """Whether there is a video of this size; a trained `size` takes width and height only as a shape.

    Raises:
        ValueError: as `video_shape`, or size is not one of `SIZES`.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}.")
    if size == CUSTOM:
        video_shape(width, height, length)
    else:
        video_shape(length=length)


def check_continuation(length: int = LINKED_LENGTH, num_cond_frames: int = 1) -> None:
    """Raise ValueError if there is no video of this length, or nothing of it is left to generate."""
    video_shape(length=length)
    condition.check_leaves_room(LENGTH_GRID.floor(num_cond_frames), length)


def frame_size(size: Any, width: int, height: int, frames: Tensor | None) -> buckets.Size:
    """Pixels of one frame: as asked for, or the trained size nearest in shape to the frames (or to width x height).

    Raises:
        ValueError: no trained size has nearly that shape.
    """
    asked = buckets.Size(height, width)
    if size == CUSTOM:
        return asked
    return buckets.nearest(size, asked if frames is None else buckets.Size(*frames.shape[1:3]))


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
        ValueError: as `encoded`, `condition.given_frames` and `video_shape`.
    """
    shape = video_shape(target.width, target.height, length)
    given = rgb(condition.given_frames(frames, num_cond_frames, length))
    fitted = condition.filled(given, target) if size == CUSTOM else condition.stretched(given, target)
    return condition.with_condition(encoded(vae, fitted), shape)


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
        ValueError: as `frame_size`, `video_shape` and `continuing`.
    """
    target = frame_size(size, width, height, frames)
    if frames is None:
        shape = video_shape(target.width, target.height, length)
        device = comfy.model_management.intermediate_device()
        samples = torch.zeros([batch_size, LATENT_CHANNELS, *shape], device=device)
        return {"samples": samples, "downscale_ratio_spacial": SPATIAL_SCALE}
    latent = continuing(vae, frames, num_cond_frames, target, size, length)
    return nodes.RepeatLatentBatch().repeat(latent, batch_size)[0]


def frame_inputs() -> list[io.Int.Input]:
    """The inputs `width` and `height` of a node that makes videos."""
    grid: dict[str, Any] = {"min": PIXEL_MULTIPLE, "max": nodes.MAX_RESOLUTION, "step": PIXEL_MULTIPLE}
    trained = "Pixels, a multiple of 16. Trained at about 480 x 832 pixels in any aspect ratio."
    return [
        io.Int.Input("width", default=832, tooltip=trained, **grid),
        io.Int.Input("height", default=480, tooltip="Pixels, a multiple of 16.", **grid),
    ]


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
                io.Int.Input(
                    "length",
                    default=93,
                    min=1,
                    max=nodes.MAX_RESOLUTION,
                    step=TEMPORAL_SCALE,
                    tooltip="Frames at 15 per second, 4n+1, the given ones included. Trained up to 93 (6.2 s).",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, optional=True, tooltip="Videos made at once."),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the frames; not needed without them."),
                io.Image.Input(
                    "frames",
                    optional=True,
                    tooltip="An image to animate, or a video (15 frames per second) to continue from its end.",
                ),
                io.Int.Input(
                    "num_cond_frames",
                    default=DEFAULT_COND_FRAMES,
                    min=1,
                    max=nodes.MAX_RESOLUTION,
                    step=TEMPORAL_SCALE,
                    optional=True,
                    tooltip="How many of the video's last frames to continue from, 4n+1 (rounded down); trained "
                    "with 13. An image is always 1.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(SIZES),
                    default=CUSTOM,
                    optional=True,
                    tooltip="480p or 720p: the trained size nearest in shape to the frames, which are stretched to it; "
                    "without frames, to width x height. custom: width x height, the frames' edges are cut off to "
                    "fill it.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="What sampling starts from: empty, or the encoded frames and a noise mask.")
            ],
        )

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, length: int | None = None, size: str | None = None
    ) -> bool | str:
        """Refuse sizes off the model's grid before anything runs."""
        return check_inputs(cls, check_size, width=width, height=height, length=length, size=size)

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
        """Check, then make it."""
        numbers = {"width": width, "height": height, "length": length, "num_cond_frames": num_cond_frames}
        check_when_run(cls, check_size, batch_size=batch_size, size=size, **numbers)
        latent = starting_latent(width, height, length, batch_size, vae, frames, num_cond_frames, size)
        return io.NodeOutput(latent)


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
                io.Int.Input(
                    "length",
                    default=93,
                    min=1 + TEMPORAL_SCALE,
                    max=nodes.MAX_RESOLUTION,
                    step=TEMPORAL_SCALE,
                    tooltip="Frames of the next segment, 4n+1, its condition frames included. Trained up to 93.",
                ),
                io.Int.Input(
                    "num_cond_frames",
                    default=DEFAULT_COND_FRAMES,
                    min=1,
                    max=nodes.MAX_RESOLUTION,
                    step=TEMPORAL_SCALE,
                    tooltip="How many frames the two segments share, 4n+1 (rounded down); trained with 13.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="What sampling starts from: the shared frames, room for more, a noise mask.")
            ],
        )

    @classmethod
    def validate_inputs(cls, length: int | None = None, num_cond_frames: int | None = None) -> bool | str:
        """Refuse lengths off the model's grid before anything runs."""
        return check_inputs(cls, check_continuation, length=length, num_cond_frames=num_cond_frames)

    @classmethod
    def execute(cls, latent: dict[str, Any], length: int, num_cond_frames: int) -> io.NodeOutput:
        """Cut the end off and put it in front."""
        check_latent(latent["samples"])
        if SHOWN_FRAMES in latent:
            raise ValueError(
                "The latent is a refined video, which ends with padding. Continue the video before it is refined; to "
                "refine the next segment, connect the frames of this one to LongCat Refine Latent (condition_frames)."
            )
        check_when_run(cls, check_continuation, length=length, num_cond_frames=num_cond_frames)
        return io.NodeOutput(condition.continued(latent["samples"], length, num_cond_frames))
