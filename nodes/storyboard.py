"""A video of any length from a list of prompts."""

from dataclasses import asdict
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..longcat_core.frames.geometry import TEMPORAL_SCALE
from ..longcat_core.frames.given import given_frames, whole_latents
from ..longcat_core.schedule import Mode
from ..longcat_core.segments import plan
from ..longcat_core.segments.fingerprint import frames_digest
from ..longcat_core.segments.loop import make_video
from .checks import checked
from .inputs import (
    CUSTOM,
    SIZES,
    cfg_input,
    check_continuation,
    check_schedule,
    check_size,
    clip_input,
    cond_frames_input,
    filename_prefix_input,
    frame_inputs,
    length_input,
    seed_input,
    size_input,
    steps_input,
    vae_input,
)
from .segment_host import check_prefix, host_of
from .segment_sources import models_digest
from .storyboard_recipe import Settings, Storyboard


def check_prompts(prompts: str = "-", segments: int = 0) -> None:
    """Raise ValueError if there are not the prompts for these segments."""
    plan.prompts_of_segments(prompts, segments)


def check_mode(mode: str) -> None:
    """Raise ValueError if a mode is none of those that make segments."""
    if mode not in plan.STORYBOARD_MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(plan.STORYBOARD_MODES)}.")


@checked(check_prompts, check_mode, check_schedule, check_prefix, check_size, check_continuation)
class LongCatStoryboard(io.ComfyNode):
    """MODEL, CLIP, VAE, prompts -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatStoryboard",
            display_name="LongCat Storyboard",
            category="model/sampling",
            description="A video of any length, segment by segment, each continuing the one before without decoding "
            "it. Every finished segment is saved to the output folder at once; after a cancel, a crash or a restart "
            "the same inputs go on from the last finished segment.",
            search_aliases=["long video", "multi prompt video", "longcat long", "extend video", "interactive video"],
            inputs=[
                io.Model.Input("model", tooltip="LongCat-Video; with LongCat KV Cache in front it is faster."),
                clip_input(),
                vae_input(),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="One prompt per line, each line is a segment; or a single one for all segments.",
                ),
                io.String.Input("negative", multiline=True, tooltip="What no segment should show; ignored at cfg 1."),
                io.Int.Input(
                    "segments",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="How many segments; 0: as many as there are prompts.",
                ),
                *frame_inputs(),
                length_input(
                    "Frames of one segment at 15 per second, 4n+1. Trained up to 93 (6.2 s).", least=1 + TEMPORAL_SCALE
                ),
                cond_frames_input(
                    "Frames that a segment shares with the one before, 4n+1 (rounded down); trained with 13. Segments "
                    "after the first add length - num_cond_frames frames."
                ),
                seed_input(
                    "The noise of the first segment. Another seed is another video: to go on with one that was "
                    "interrupted, keep it.",
                    control=io.ControlAfterGenerate.fixed,
                ),
                io.Combo.Input(
                    "seed_policy",
                    options=list(plan.SEED_POLICIES),
                    default="increment",
                    tooltip="increment: each segment has the next seed. same: all have the same noise.",
                ),
                steps_input("50; 16 for distill (at most 50)."),
                cfg_input("Guidance scale: 4; 1 (off, twice as fast) for distill."),
                io.Combo.Input(
                    "mode",
                    options=list(plan.STORYBOARD_MODES),
                    default="enhance_hf",
                    tooltip="enhance_hf: more steps at low noise for every continuation, as the reference makes long "
                    "videos (56 model calls from 50 steps). base: the same steps throughout. distill: with the "
                    "distilled LoRA (16 steps, cfg 1).",
                ),
                filename_prefix_input("longcat/storyboard"),
                io.Image.Input(
                    "frames",
                    optional=True,
                    tooltip="An image that the video starts from, or a video (15 frames per second) to continue: the "
                    "result then begins with its last num_cond_frames.",
                ),
                size_input(
                    SIZES,
                    "480p or 720p: the trained size nearest in shape to the frames (or to width x height); custom: "
                    "width x height.",
                ),
                io.Float.Input(
                    "color_anchor",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How far colors and brightness of later segments are pulled to those of the first; 0: not. "
                    "Helps against drift in one scene, wrong where the scene changes.",
                ),
                io.Float.Input(
                    "condition_noise",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Share of noise in the frames that a segment continues from, so that it does not copy "
                    "their flaws; they stay clean in the video. 0: none, 0.05 is slight.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The whole video, 15 frames per second.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        prompts: str,
        negative: str,
        segments: int,
        width: int,
        height: int,
        length: int,
        num_cond_frames: int,
        seed: int,
        seed_policy: plan.SeedPolicy,
        steps: int,
        cfg: float,
        mode: Mode,
        filename_prefix: str,
        frames: Tensor | None = None,
        size: str = CUSTOM,
        color_anchor: float = 0.0,
        condition_noise: float = 0.0,
    ) -> io.NodeOutput:
        """Plan, then make what is not there yet."""
        settings = Settings(
            negative=negative,
            width=width,
            height=height,
            length=length,
            num_cond_frames=whole_latents(num_cond_frames),
            steps=steps,
            cfg=cfg,
            size=size,
            color_anchor=color_anchor,
            condition_noise=condition_noise,
        )
        continues = frames is not None and len(frames) > 1
        given = None if frames is None else given_frames(frames, settings.num_cond_frames, length)
        made_from = {
            "settings": asdict(settings),
            "frames": frames_digest(given),
            "models": models_digest(cls.hidden, model=model, clip=clip, vae=vae),
        }
        prompt_of_each = plan.prompts_of_segments(prompts, segments)
        planned = plan.of_storyboard(prompt_of_each, mode, seed, seed_policy, continues, made_from)
        host = host_of(cls.hidden, filename_prefix, width, height)
        video = make_video(Storyboard(model, clip, vae, given, settings), planned, host)
        return io.NodeOutput(video, ui=host.preview(planned))
