"""Latents of the size of the video."""

import comfy.model_management
import nodes
import torch
from comfy_api.latest import io

from ..longcat_core.geometry import (
    LATENT_CHANNELS,
    PIXEL_MULTIPLE,
    SPATIAL_SCALE,
    TEMPORAL_SCALE,
    LatentShape,
    PixelShape,
)
from .validation import check_inputs


def video_shape(width: int = PIXEL_MULTIPLE, height: int = PIXEL_MULTIPLE, length: int = 1) -> LatentShape:
    """Latent shape of a video in pixels and frames; raises ValueError as `PixelShape.latent`."""
    return PixelShape(length, height, width).latent()


class LongCatLatent(io.ComfyNode):
    """Size, length -> LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatLatent",
            display_name="LongCat Latent",
            category="model/latent/longcat",
            description="The empty latent that text-to-video starts from.",
            search_aliases=["empty latent longcat", "longcat size", "video length", "text to video latent"],
            inputs=[
                io.Int.Input(
                    "width",
                    default=832,
                    min=PIXEL_MULTIPLE,
                    max=nodes.MAX_RESOLUTION,
                    step=PIXEL_MULTIPLE,
                    tooltip="Pixels, a multiple of 16. Trained at about 480 x 832 pixels in any aspect ratio.",
                ),
                io.Int.Input(
                    "height",
                    default=480,
                    min=PIXEL_MULTIPLE,
                    max=nodes.MAX_RESOLUTION,
                    step=PIXEL_MULTIPLE,
                    tooltip="Pixels, a multiple of 16.",
                ),
                io.Int.Input(
                    "length",
                    default=93,
                    min=1,
                    max=nodes.MAX_RESOLUTION,
                    step=TEMPORAL_SCALE,
                    tooltip="Frames at 15 per second, 4n+1. Trained up to 93 (6.2 s).",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, optional=True, tooltip="Videos made at once."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, length: int | None = None
    ) -> bool | str:
        """Refuse sizes off the model's grid before anything runs."""
        return check_inputs(cls, video_shape, width=width, height=height, length=length)

    @classmethod
    def execute(cls, width: int, height: int, length: int, batch_size: int = 1) -> io.NodeOutput:
        """Zeros, which ComfyUI's samplers take for "nothing given"."""
        shape = video_shape(width, height, length)
        device = comfy.model_management.intermediate_device()
        samples = torch.zeros([batch_size, LATENT_CHANNELS, *shape], device=device)
        return io.NodeOutput({"samples": samples, "downscale_ratio_spacial": SPATIAL_SCALE})
