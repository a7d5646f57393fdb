"""The latent that refinement to 720p and 30 frames per second starts from."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..longcat_core.frames import buckets, refine
from ..longcat_core.frames.comfyui import stretched
from ..longcat_core.frames.given import rgb
from ..longcat_core.frames.latents import beginning_with, video_latent
from ..longcat_core.frames.refine import DEFAULT_REFINE_COND_FRAMES, RefineFrames, RefineMode
from .checks import checked
from .inputs import (
    REFINED_HEIGHT,
    REFINED_SIZES,
    REFINED_WIDTH,
    TRAINED,
    check_refined_size,
    cond_frames_input,
    frame_size,
    refine_mode_input,
    refined_size_inputs,
    vae_input,
)
from .latents import encoded


def refining(
    vae: Any, frames: Tensor, mode: RefineMode, target: buckets.Size, given: Tensor | None, num_cond_frames: int
) -> dict[str, Any]:
    """The LATENT that refines a video `[F, H, W, C]`, beginning with the end of `given` if there are such frames.

    Raises:
        ValueError: too few frames of either, or as `encoded`.
    """
    refine.check_frames(frames, mode)
    if given is not None:
        given = stretched(refine.last_given(rgb(given), num_cond_frames, target), target)
    plan = RefineFrames(refine.refined_length(len(frames), mode), 0 if given is None else len(given))
    larger = refine.upscaled(rgb(frames), plan.num_frames, *target)
    samples = encoded(vae, refine.padded(larger, plan.front, plan.back))
    if given is None:
        return video_latent(samples, plan.shown)
    return beginning_with(encoded(vae, refine.padded(given, plan.front)), samples, plan.shown)


@checked(check_refined_size, ranges=("num_cond_frames",))
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
                vae_input(),
                io.Image.Input(
                    "frames",
                    tooltip="The video to refine, at 15 frames per second; trained with 93 frames. With condition "
                    "frames it begins with the same moments as those.",
                ),
                refine_mode_input(),
                io.Image.Input(
                    "condition_frames",
                    optional=True,
                    tooltip="The segment refined before this one, or the image that the video started from: the "
                    "result begins with its end.",
                ),
                cond_frames_input(
                    "How many of the condition frames, counted at the new frame rate: 26 where the segments share 13 "
                    "frames, 13 in mode spatial. An image is always 1; not used without condition_frames.",
                    default=DEFAULT_REFINE_COND_FRAMES,
                    step=None,
                    optional=True,
                ),
                *refined_size_inputs(),
            ],
            outputs=[io.Latent.Output(tooltip="The enlarged video, with a noise mask if there are condition frames.")],
        )

    @classmethod
    def execute(
        cls,
        vae: Any,
        frames: Tensor,
        mode: RefineMode,
        condition_frames: Tensor | None = None,
        num_cond_frames: int = DEFAULT_REFINE_COND_FRAMES,
        size: str = TRAINED,
        width: int = REFINED_WIDTH,
        height: int = REFINED_HEIGHT,
    ) -> io.NodeOutput:
        """Enlarge, pad, encode."""
        target = frame_size(REFINED_SIZES[size], width, height, frames)
        return io.NodeOutput(refining(vae, frames, mode, target, condition_frames, num_cond_frames))
