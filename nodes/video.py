"""From latents to frames."""

from typing import Any

import comfy.model_management
import nodes
import torch
from comfy_api.latest import io

from .validation import check_latent

TILING = ("auto", "always")
TILE_PIXELS, TILE_OVERLAP_PIXELS = 512, 64
TILE_FRAMES, TILE_OVERLAP_FRAMES = 64, 8


def needs_tiles(vae: Any, samples: torch.Tensor) -> bool:
    """Whether ComfyUI's own estimate for decoding one video exceeds all the memory that the VAE's device has."""
    required = vae.memory_used_decode(samples[:1].shape, vae.vae_dtype)
    return required > comfy.model_management.get_total_memory(vae.device)


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
            "fit. If memory runs out all the same, core retries in tiles.",
            search_aliases=["decode longcat", "latent to video", "latent to frames", "tiled decode"],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, from LongCat Loader or Load VAE."),
                io.Latent.Input("latent"),
                io.Combo.Input(
                    "tiling",
                    options=list(TILING),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="always: tiles of 512 pixels and 64 frames; slower, least memory.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The frames, batches one after the other; 15 per second.")],
        )

    @classmethod
    def execute(cls, vae: Any, latent: dict[str, Any], tiling: str = "auto") -> io.NodeOutput:
        """Decode whole or in tiles."""
        check_latent(latent["samples"])
        if tiling == "always" or needs_tiles(vae, latent["samples"]):
            tiles = (TILE_PIXELS, TILE_OVERLAP_PIXELS, TILE_FRAMES, TILE_OVERLAP_FRAMES)
            return io.NodeOutput(*nodes.VAEDecodeTiled().decode(vae, latent, *tiles))
        return io.NodeOutput(*nodes.VAEDecode().decode(vae, latent))
