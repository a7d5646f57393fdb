"""A video of any length from a list of prompts."""

from dataclasses import asdict
from typing import Any

import nodes
from comfy_api.latest import io
from torch import Tensor

from ..longcat_core.frames import latents as condition
from ..longcat_core.frames.geometry import PIXEL_MULTIPLE, TEMPORAL_SCALE
from ..longcat_core.schedule import Mode
from ..longcat_core.segments import plan
from ..longcat_core.segments.fingerprint import frames_digest
from ..longcat_core.segments.loop import make_video
from .checks import check_inputs, check_when_run
from .latents import CUSTOM, LINKED_LENGTH, SIZES, check_continuation, check_size, frame_inputs
from .sampling import check_schedule
from .segment_host import check_prefix, host_of
from .segment_sources import models_digest
from .storyboard_recipe import Settings, Storyboard

SIZES_CHECKED = ("width", "height", "length", "num_cond_frames")
CHECKED = ("prompts", "segments", *SIZES_CHECKED, "steps", "mode", "filename_prefix", "size")


def check_storyboard(
    prompts: str = "-",
    segments: int = 0,
    width: int = PIXEL_MULTIPLE,
    height: int = PIXEL_MULTIPLE,
    length: int = LINKED_LENGTH,
    num_cond_frames: int = 1,
    steps: int = 1,
    mode: Any = "base",
    filename_prefix: str = "-",
    size: str = CUSTOM,
) -> None:
    """Raise ValueError if no such video can be planned."""
    plan.prompts_of_segments(prompts, segments)
    if mode not in plan.STORYBOARD_MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(plan.STORYBOARD_MODES)}.")
    check_schedule(steps, mode)
    check_prefix(filename_prefix)
    check_size(width, height, length, size)
    check_continuation(length, num_cond_frames)


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
                io.Clip.Input("clip", tooltip="UMT5-XXL, from LongCat Loader or Load CLIP with type wan."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, from LongCat Loader or Load VAE."),
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
                io.Int.Input(
                    "length",
                    default=93,
                    min=1 + TEMPORAL_SCALE,
                    max=nodes.MAX_RESOLUTION,
                    step=TEMPORAL_SCALE,
                    tooltip="Frames of one segment at 15 per second, 4n+1. Trained up to 93 (6.2 s).",
                ),
                io.Int.Input(
                    "num_cond_frames",
                    default=DEFAULT_COND_FRAMES,
                    min=1,
                    max=nodes.MAX_RESOLUTION,
                    step=TEMPORAL_SCALE,
                    tooltip="Frames that a segment shares with the one before, 4n+1 (rounded down); trained with 13. "
                    "Segments after the first add length - num_cond_frames frames.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=plan.MAX_SEED,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The noise of the first segment. Another seed is another video: to go on with one that "
                    "was interrupted, keep it.",
                ),
                io.Combo.Input(
                    "seed_policy",
                    options=list(plan.SEED_POLICIES),
                    default="increment",
                    tooltip="increment: each segment has the next seed. same: all have the same noise.",
                ),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="50; 16 for distill (at most 50)."),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance scale: 4; 1 (off, twice as fast) for distill.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(plan.STORYBOARD_MODES),
                    default="enhance_hf",
                    tooltip="enhance_hf: more steps at low noise for every continuation, as the reference makes long "
                    "videos (56 model calls from 50 steps). base: the same steps throughout. distill: with the "
                    "distilled LoRA (16 steps, cfg 1).",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="longcat/storyboard",
                    tooltip="Folder and beginning of the names of the segments' files in the output folder.",
                ),
                io.Image.Input(
                    "frames",
                    optional=True,
                    tooltip="An image that the video starts from, or a video (15 frames per second) to continue: the "
                    "result then begins with its last num_cond_frames.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(SIZES),
                    default=CUSTOM,
                    optional=True,
                    tooltip="480p or 720p: the trained size nearest in shape to the frames (or to width x height); "
                    "custom: width x height.",
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
    def validate_inputs(
        cls,
        prompts: str | None = None,
        segments: int | None = None,
        width: int | None = None,
        height: int | None = None,
        length: int | None = None,
        num_cond_frames: int | None = None,
        steps: int | None = None,
        mode: str | None = None,
        filename_prefix: str | None = None,
        size: str | None = None,
    ) -> bool | str:
        """Refuse a video that cannot be planned before anything runs."""
        values = (prompts, segments, width, height, length, num_cond_frames, steps, mode, filename_prefix, size)
        return check_inputs(cls, check_storyboard, **dict(zip(CHECKED, values, strict=True)))

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
        check_when_run(
            cls,
            check_storyboard,
            prompts=prompts,
            segments=segments,
            width=width,
            height=height,
            length=length,
            num_cond_frames=num_cond_frames,
            seed=seed,
            steps=steps,
            cfg=cfg,
            mode=mode,
            filename_prefix=filename_prefix,
            size=size,
            color_anchor=color_anchor,
            condition_noise=condition_noise,
        )
        settings = Settings(
            negative=negative,
            width=width,
            height=height,
            length=length,
            num_cond_frames=condition.whole_latents(num_cond_frames),
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
