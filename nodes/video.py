"""From latents to frames, and from segments to one video."""

import logging
from typing import Any

import comfy.model_management
import comfy.utils
import nodes
import torch
from comfy_api.latest import io

from ..longcat_core.frames.given import DEFAULT_COND_FRAMES, rgb
from ..longcat_core.frames.shown import shown
from .checks import check_latent, checked
from .inputs import vae_input

TILING = ("auto", "always")
TILE_PIXELS, TILE_OVERLAP_PIXELS = 512, 64
TILE_FRAMES, TILE_OVERLAP_FRAMES = 64, 8


def needs_tiles(vae: Any, samples: torch.Tensor) -> bool:
    """Whether ComfyUI's own estimate for decoding one video exceeds all the memory that the VAE's device has."""
    required = vae.memory_used_decode(samples[:1].shape, vae.vae_dtype)
    return required > comfy.model_management.get_total_memory(vae.device)


def decoded(vae: Any, latent: dict[str, Any], tiling: str = "auto") -> torch.Tensor:
    """The frames `[F, H, W, 3]` of a LATENT, batches one after the other, without those that refinement added.

    Args:
        vae: the Wan 2.1 VAE.
        latent: what a sampler made.
        tiling: always, or auto: where the whole would not fit into memory.

    Raises:
        ValueError: as `shown`.
    """
    if tiling == "always" or needs_tiles(vae, latent["samples"]):
        tiles = (TILE_PIXELS, TILE_OVERLAP_PIXELS, TILE_FRAMES, TILE_OVERLAP_FRAMES)
        frames = nodes.VAEDecodeTiled().decode(vae, latent, *tiles)[0]
    else:
        frames = nodes.VAEDecode().decode(vae, latent)[0]
    return shown(frames, latent)


class LongCatDecode(io.ComfyNode):
    """VAE, LATENT -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatDecode",
            display_name="LongCat Decode",
            category="model/latent/longcat",
            description="Decodes a video latent to frames with core's VAE decoding, in tiles when the whole would not "
            "fit. If memory runs out all the same, core retries in tiles. Frames that LongCat Refine Latent added are "
            "dropped.",
            search_aliases=["decode longcat", "latent to video", "latent to frames", "tiled decode"],
            inputs=[
                vae_input(),
                io.Latent.Input("latent", tooltip="What the sampler made."),
                io.Combo.Input(
                    "tiling",
                    options=list(TILING),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="always: tiles of 512 pixels and 64 frames; slower, least memory.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The frames, batches one after the other; 15 per second, refined ones 30.")
            ],
        )

    @classmethod
    def execute(cls, vae: Any, latent: dict[str, Any], tiling: str = "auto") -> io.NodeOutput:
        """Decode a finished video."""
        check_latent(latent, "LongCat Decode")
        return io.NodeOutput(decoded(vae, latent, tiling))


def joined(source: torch.Tensor, continuation: torch.Tensor, overlap: int) -> torch.Tensor:
    """Frames `[F, H, W, C]` of a video followed by those of its continuation that are new, at the size of the video.

    Raises:
        ValueError: the overlap is longer than the video, or leaves nothing of the continuation.
    """
    if overlap > len(source) or overlap >= len(continuation):
        raise ValueError(
            f"overlap is {overlap}, but the source has {len(source)} frames and the continuation {len(continuation)}: "
            f"it must be num_cond_frames of the node that made the continuation's latent (1 for an image), and the "
            f"source the whole video that was continued."
        )
    source, new = rgb(source), rgb(continuation[overlap:])
    height, width = source.shape[1:3]
    if new.shape[1:3] != (height, width):
        logging.info("LongCat Join resizes the continuation to the source's %s x %s pixels.", width, height)
        new = comfy.utils.common_upscale(new.movedim(-1, 1), width, height, "bicubic", "disabled").movedim(1, -1)
        new = new.clamp(0, 1)
    return torch.cat([source, new.to(source)], dim=0)


@checked()
class LongCatJoin(io.ComfyNode):
    """IMAGE, IMAGE -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatJoin",
            display_name="LongCat Join",
            category="model/latent/longcat",
            description="Puts a continuation behind the video that it continues. The frames that both have are taken "
            "from the source, so they are exactly the given ones; the continuation is brought to the source's size.",
            search_aliases=["join videos", "extend video", "concatenate segments", "stitch video", "longcat extend"],
            inputs=[
                io.Image.Input("source", tooltip="The video that was continued, up to its last frame."),
                io.Image.Input("continuation", tooltip="Its decoded continuation, beginning with the shared frames."),
                io.Int.Input(
                    "overlap",
                    default=DEFAULT_COND_FRAMES,
                    min=0,
                    max=nodes.MAX_RESOLUTION,
                    tooltip="Frames that both have: num_cond_frames of LongCat Latent or LongCat Continue Latent "
                    "(after rounding), 1 for an image.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The whole video.")],
        )

    @classmethod
    def execute(cls, source: torch.Tensor, continuation: torch.Tensor, overlap: int) -> io.NodeOutput:
        """Append what is new."""
        return io.NodeOutput(joined(source, continuation, overlap))
