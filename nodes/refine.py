"""The latent that refinement to 720p and 30 frames per second starts from."""

from typing import Any

import nodes
from comfy_api.latest import io
from torch import Tensor

from ..longcat_core.frames import buckets, refine
from ..longcat_core.frames import latents as condition
from ..longcat_core.frames.geometry import PIXEL_MULTIPLE, SPATIAL_SCALE
from ..longcat_core.frames.refine import DEFAULT_REFINE_COND_FRAMES, SHOWN_FRAMES, RefineFrames, RefineMode
from .checks import check_inputs, check_when_run, rgb
from .latents import CUSTOM, check_size, encoded

TRAINED = "720p"
REFINED_SIZES = (TRAINED, CUSTOM)


def check_refined_size(width: int = PIXEL_MULTIPLE, height: int = PIXEL_MULTIPLE, size: str = TRAINED) -> None:
    """Raise ValueError if there is no refined video of this size."""
    if size not in REFINED_SIZES:
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(REFINED_SIZES)}.")
    if size == CUSTOM:
        check_size(width, height)


def refined_size(size: str, width: int, height: int, frames: Tensor) -> buckets.Size:
    """Pixels of a refined frame: as asked for, or the trained size nearest in shape to the frames `[F, H, W, C]`.

    Raises:
        ValueError: no trained size has nearly that shape.
    """
    return (
        buckets.Size(height, width)
        if size == CUSTOM
        else buckets.nearest(buckets.REFINED, buckets.Size(*frames.shape[1:3]))
    )


def refining(
    vae: Any, frames: Tensor, mode: RefineMode, target: buckets.Size, given: Tensor | None, num_cond_frames: int
) -> dict[str, Any]:
    """The LATENT that refines a video `[F, H, W, C]`, beginning with the end of `given` if there are such frames.

    Raises:
        ValueError: too few frames of either, or as `encoded`.
    """
    refine.check_frames(frames, mode)
    given = None if given is None else refine.last_given(rgb(given), num_cond_frames, target)
    plan = RefineFrames(refine.refined_length(len(frames), mode), 0 if given is None else len(given))
    larger = refine.upscaled(rgb(frames), plan.num_frames, *target)
    samples = encoded(vae, refine.padded(larger, plan.front, plan.back))
    latent = {"samples": samples, "downscale_ratio_spacial": SPATIAL_SCALE}
    if given is not None:
        latent = condition.beginning_with(encoded(vae, refine.padded(given, plan.front)), samples)
    return {**latent, SHOWN_FRAMES: plan.shown}


def size_inputs() -> list[io.Input]:
    """The inputs `size`, `width` and `height` of a node that refines."""
    grid: dict[str, Any] = {"min": PIXEL_MULTIPLE, "max": nodes.MAX_RESOLUTION, "step": PIXEL_MULTIPLE}
    return [
        io.Combo.Input(
            "size",
            options=list(REFINED_SIZES),
            default=TRAINED,
            optional=True,
            tooltip="720p: the trained size of about 0.9 megapixels that is nearest in shape to the frames, 1280 x 704 "
            "for 832 x 480. custom: width x height.",
        ),
        io.Int.Input(
            "width", default=1280, optional=True, tooltip="Pixels, only for custom; multiples of 64 are best.", **grid
        ),
        io.Int.Input(
            "height", default=704, optional=True, tooltip="Pixels, only for custom; multiples of 64 are best.", **grid
        ),
    ]


def mode_input() -> io.Combo.Input:
    """The input `mode` of a node that refines."""
    return io.Combo.Input(
        "mode",
        options=list(refine.REFINE_MODES),
        default=refine.REFINE_MODES[0],
        tooltip="spatial+temporal: larger, and twice as many frames at twice the frame rate (15 to 30 per second). "
        "spatial: larger only.",
    )


class LongCatRefineLatent(io.ComfyNode):
    """VAE, IMAGE -> LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatRefineLatent",
            display_name="LongCat Refine Latent",
            category="model/latent/longcat",
            description="What refinement starts from: a finished video, enlarged to 720p and brought to twice its "
            "frame rate. Sample it with the refinement LoRA, mode refine and cfg 1; LongCat Decode drops the frames "
            "that were added to fill whole chunks.",
            search_aliases=[
                "refine longcat",
                "upscale video",
                "720p",
                "30 fps",
                "super resolution",
                "interpolate frames",
            ],
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, from LongCat Loader or Load VAE."),
                io.Image.Input(
                    "frames",
                    tooltip="The video to refine, at 15 frames per second; trained with 93 frames. With condition "
                    "frames it begins with the same moments as those.",
                ),
                mode_input(),
                io.Image.Input(
                    "condition_frames",
                    optional=True,
                    tooltip="The segment refined before this one, or the image that the video started from: the "
                    "result begins with its end.",
                ),
                io.Int.Input(
                    "num_cond_frames",
                    default=DEFAULT_REFINE_COND_FRAMES,
                    min=1,
                    max=nodes.MAX_RESOLUTION,
                    optional=True,
                    tooltip="How many of the condition frames, counted at the new frame rate: 26 where the segments "
                    "share 13 frames, 13 in mode spatial. An image is always 1; not used without condition_frames.",
                ),
                *size_inputs(),
            ],
            outputs=[io.Latent.Output(tooltip="The enlarged video, with a noise mask if there are condition frames.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        num_cond_frames: int | None = None,
        size: str | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> bool | str:
        """Refuse sizes off the model's grid before anything runs."""
        values = {"num_cond_frames": num_cond_frames, "size": size, "width": width, "height": height}
        return check_inputs(cls, lambda num_cond_frames=1, **sizes: check_refined_size(**sizes), **values)

    @classmethod
    def execute(
        cls,
        vae: Any,
        frames: Tensor,
        mode: RefineMode,
        condition_frames: Tensor | None = None,
        num_cond_frames: int = DEFAULT_REFINE_COND_FRAMES,
        size: str = TRAINED,
        width: int = 1280,
        height: int = 704,
    ) -> io.NodeOutput:
        """Enlarge, pad, encode."""
        numbers = {"num_cond_frames": num_cond_frames, "size": size, "width": width, "height": height}
        check_when_run(cls, check_refined_size, **numbers)
        target = refined_size(size, width, height, frames)
        return io.NodeOutput(refining(vae, frames, mode, target, condition_frames, num_cond_frames))
