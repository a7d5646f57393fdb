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
from ..longcat_core.frames.geometry import FRAMES_PER_SECOND, PIXEL_MULTIPLE, PixelShape
from ..longcat_core.frames.latents import DEFAULT_COND_FRAMES
from ..longcat_core.frames.refine import RefineMode
from ..longcat_core.schedule import DEFAULT_REFINE_THRESHOLD
from ..longcat_core.segments import plan
from ..longcat_core.segments.loop import make_video
from .refine import TRAINED, check_refined_size, mode_input, refined_size, size_inputs
from .refinement_recipe import Refinement, RefineSettings
from .sampling import check_schedule, threshold_input
from .segment_host import check_prefix, host_of
from .segment_sources import models_digest, prompt_digest
from .checks import check_inputs, check_when_run

MAX_FPS = 240.0
VALUE_BYTES = 4


def check_refinement(
    length: int = nodes.MAX_RESOLUTION,
    num_cond_frames: int = 1,
    steps: int = 1,
    threshold: float = DEFAULT_REFINE_THRESHOLD,
    filename_prefix: str = "-",
    size: str = TRAINED,
    width: int = PIXEL_MULTIPLE,
    height: int = PIXEL_MULTIPLE,
) -> None:
    """Raise ValueError if no video can be refined like this."""
    plan.parts(length, length, num_cond_frames)
    check_schedule(steps, "refine", threshold)
    check_prefix(filename_prefix)
    check_refined_size(width, height, size)


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
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, from LongCat Loader or Load VAE."),
                io.Image.Input("frames", tooltip="The whole video."),
                mode_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=plan.MAX_SEED,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The noise of the first segment, counted up for the others. To go on with a video that "
                    "was interrupted, keep it.",
                ),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="50, of which refinement makes the last 5."),
                io.String.Input(
                    "filename_prefix",
                    default="longcat/refined",
                    tooltip="Folder and beginning of the names of the segments' files in the output folder.",
                ),
                io.Int.Input(
                    "length",
                    default=93,
                    min=2,
                    max=nodes.MAX_RESOLUTION,
                    optional=True,
                    tooltip="Frames of the given video in one segment; trained with 93.",
                ),
                io.Int.Input(
                    "num_cond_frames",
                    default=DEFAULT_COND_FRAMES,
                    min=1,
                    max=nodes.MAX_RESOLUTION,
                    optional=True,
                    tooltip="Frames of the given video that a segment shares with the one before; 13 as released.",
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
                *size_inputs(),
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
    def validate_inputs(
        cls,
        length: int | None = None,
        num_cond_frames: int | None = None,
        steps: int | None = None,
        threshold: float | None = None,
        filename_prefix: str | None = None,
        size: str | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> bool | str:
        """Refuse what cannot be refined before anything runs."""
        sizes = {"size": size, "width": width, "height": height, "length": length, "num_cond_frames": num_cond_frames}
        schedule = {"steps": steps, "threshold": threshold}
        return check_inputs(cls, check_refinement, filename_prefix=filename_prefix, **sizes, **schedule)

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
        length: int = 93,
        num_cond_frames: int = DEFAULT_COND_FRAMES,
        fps: float = float(FRAMES_PER_SECOND),
        size: str = TRAINED,
        width: int = 1280,
        height: int = 704,
        threshold: float = DEFAULT_REFINE_THRESHOLD,
    ) -> io.NodeOutput:
        """Plan, then refine what is not there yet."""
        check_when_run(
            cls,
            check_refinement,
            seed=seed,
            steps=steps,
            filename_prefix=filename_prefix,
            length=length,
            num_cond_frames=num_cond_frames,
            fps=fps,
            size=size,
            width=width,
            height=height,
            threshold=threshold,
        )
        refine.check_frames(frames, mode)
        target = refined_size(size, width, height, frames)
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
