"""Refine a video of any length, segment by segment."""

from dataclasses import asdict
from fractions import Fraction
from typing import Any

import comfy.model_management
import nodes
import torch
from comfy_api.latest import io
from torch import Tensor

from ..longcat_core.frames import refine
from ..longcat_core.frames.geometry import FRAMES_PER_SECOND, PixelShape
from ..longcat_core.frames.given import DEFAULT_COND_FRAMES
from ..longcat_core.frames.refine import RefineMode
from ..longcat_core.schedule import DEFAULT_REFINE_THRESHOLD
from ..longcat_core.segments import plan
from ..longcat_core.segments.loop import make_video
from .checks import checked
from .inputs import (
    REFINED_HEIGHT,
    REFINED_SIZES,
    REFINED_WIDTH,
    TRAINED,
    TRAINED_LENGTH,
    check_refined_size,
    check_schedule,
    cond_frames_input,
    filename_prefix_input,
    frame_size,
    length_input,
    refine_mode_input,
    refined_size_inputs,
    seed_input,
    steps_input,
    threshold_input,
    vae_input,
)
from .refinement_recipe import Refinement, RefineSettings
from .segment_host import check_prefix, host_of
from .segment_sources import models_digest, prompt_digest

MAX_FPS = 240.0
VALUE_BYTES = 4


def check_parts(length: int = nodes.MAX_RESOLUTION, num_cond_frames: int = 1) -> None:
    """Raise ValueError if segments of this length add nothing to those before."""
    plan.parts(length, length, num_cond_frames)


def check_refine_schedule(steps: int = 1, threshold: float = DEFAULT_REFINE_THRESHOLD) -> None:
    """Raise ValueError if there is no schedule of mode refine like this."""
    check_schedule(steps, "refine", threshold)


def check_memory(video: PixelShape) -> None:
    """Raise ValueError if the frames of a video are more than the computer's memory holds."""
    needed = video.frames * video.height * video.width * 3 * VALUE_BYTES
    total = comfy.model_management.get_total_memory(torch.device("cpu"))
    if needed > total:
        raise ValueError(
            f"The refined video has {video.frames} frames of {video.width} x {video.height} pixels, {needed / 1e9:.1f} "
            f"GB as images, and this computer has {total / 1e9:.1f} GB of memory. Refine it in parts (Get Image "
            f"from Batch), or choose mode spatial."
        )


@checked(check_parts, check_refine_schedule, check_prefix, check_refined_size)
class LongCatRefineVideo(io.ComfyNode):
    """MODEL, CONDITIONING, VAE, IMAGE -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatRefineVideo",
            display_name="LongCat Refine Video",
            category="model/sampling",
            description="Refines a video of any length to 720p and twice its frame rate, segment by segment, each "
            "beginning with the end of the one before. Every finished segment is saved to the output folder at once; "
            "after a cancel, a crash or a restart the same inputs go on from the last finished segment.",
            search_aliases=["refine video longcat", "upscale long video", "720p", "30 fps", "super resolution"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="LongCat-Video with the refinement LoRA; with LongCat Block-Sparse "
                    "Attention attention is a sixteenth of the work.",
                ),
                io.Conditioning.Input("positive", tooltip="The video's prompt; an empty one where it had several."),
                vae_input(),
                io.Image.Input("frames", tooltip="The whole video."),
                refine_mode_input(),
                seed_input(
                    "The noise of the first segment, counted up for the others. To go on with a video that was "
                    "interrupted, keep it.",
                    control=io.ControlAfterGenerate.fixed,
                ),
                steps_input("50, of which refinement makes the last 5."),
                filename_prefix_input("longcat/refined"),
                length_input(
                    "Frames of the given video in one segment; trained with 93.", least=2, step=None, optional=True
                ),
                cond_frames_input(
                    "Frames of the given video that a segment shares with the one before; 13 as released.",
                    step=None,
                    optional=True,
                ),
                io.Float.Input(
                    "fps",
                    default=float(FRAMES_PER_SECOND),
                    min=1.0,
                    max=MAX_FPS,
                    step=0.01,
                    optional=True,
                    tooltip="Frames per second of the given video: from Get Video Components, 15 for LongCat-Video's. "
                    "Trained with 15.",
                ),
                *refined_size_inputs(),
                threshold_input(),
            ],
            outputs=[
                io.Image.Output(tooltip="The whole refined video."),
                io.Float.Output("fps", tooltip="Its frames per second, for Create Video."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        vae: Any,
        frames: Tensor,
        mode: RefineMode,
        seed: int,
        steps: int,
        filename_prefix: str,
        length: int = TRAINED_LENGTH,
        num_cond_frames: int = DEFAULT_COND_FRAMES,
        fps: float = float(FRAMES_PER_SECOND),
        size: str = TRAINED,
        width: int = REFINED_WIDTH,
        height: int = REFINED_HEIGHT,
        threshold: float = DEFAULT_REFINE_THRESHOLD,
    ) -> io.NodeOutput:
        """Plan, then refine what is not there yet."""
        refine.check_frames(frames, mode)
        target = frame_size(REFINED_SIZES[size], width, height, frames)
        check_memory(PixelShape(refine.refined_length(len(frames), mode), *target))
        settings = RefineSettings(
            mode=mode, size=target, num_cond_frames=num_cond_frames, steps=steps, threshold=threshold
        )
        made_from = {
            "settings": asdict(settings),
            "models": models_digest(cls.hidden, model=model, vae=vae),
            "positive": prompt_digest(cls.hidden, "positive", positive),
        }
        parts = plan.parts(len(frames), length, num_cond_frames)
        planned = plan.of_refinement(frames, parts, seed, made_from)
        refined_fps = refine.refined_length(1, mode) * Fraction(fps).limit_denominator(1001)
        host = host_of(cls.hidden, filename_prefix, target.width, target.height, f"_{float(refined_fps):g}fps")
        studio = Refinement(model, positive, vae, frames, parts, refined_fps, settings)
        video = make_video(studio, planned, host)
        return io.NodeOutput(video, float(refined_fps), ui=host.preview(planned))
