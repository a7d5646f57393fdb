"""Inputs that several nodes have, each declared once, and what is checked of them beside their ranges.

A check takes inputs by their names; its defaults stand for those whose values are not known yet (`checks.checked`).
"""

from collections.abc import Mapping
from typing import Any

import nodes
from comfy_api.latest import io
from torch import Tensor

from ..longcat_core import schedule
from ..longcat_core.frames import buckets, refine
from ..longcat_core.frames.geometry import LENGTH_GRID, PIXEL_MULTIPLE, TEMPORAL_SCALE, PixelShape
from ..longcat_core.frames.given import DEFAULT_COND_FRAMES, check_leaves_room
from ..longcat_core.segments.plan import MAX_SEED

Resolution = buckets.Resolution | buckets.RefinedResolution
CUSTOM = "custom"
SIZES: Mapping[str, Resolution | None] = {CUSTOM: None, "480p": "480p", "720p": "720p"}
"""What `size` offers for new videos, the default first: sizes that were trained, or width x height."""
TRAINED = "720p"
REFINED_SIZES: Mapping[str, Resolution | None] = {TRAINED: buckets.REFINED, CUSTOM: None}
"""What `size` offers for refined videos."""
REFINED_WIDTH, REFINED_HEIGHT = 1280, 704
TRAINED_LENGTH = 93
LINKED_LENGTH = 1 + TEMPORAL_SCALE * nodes.MAX_RESOLUTION  # for one that is not known yet: has room for any overlap
MODE_TOOLTIP = (
    "base: the released model (50 steps, cfg 4). distill: with the distilled LoRA (16 steps, cfg 1). "
    "enhance_hf: base with extra steps at low noise, for continuation (56 model calls from 50 steps). "
    "refine: from an upscaled video that is half noise (5 model calls from 50 steps, cfg 1)."
)


def clip_input() -> io.Clip.Input:
    """The text encoder."""
    return io.Clip.Input("clip", tooltip="UMT5-XXL, from LongCat Loader or Load CLIP with type wan.")


def vae_input() -> io.Vae.Input:
    """The VAE of a node that needs it."""
    return io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, from LongCat Loader or Load VAE.")


def pixels_input(name: str, default: int, tooltip: str, optional: bool = False) -> io.Int.Input:
    """Width or height of a frame."""
    grid: dict[str, Any] = {"min": PIXEL_MULTIPLE, "max": nodes.MAX_RESOLUTION, "step": PIXEL_MULTIPLE}
    return io.Int.Input(name, default=default, tooltip=tooltip, optional=optional, **grid)


def frame_inputs() -> list[io.Input]:
    """Width and height of a new video."""
    trained = "Pixels, a multiple of 16. Trained at about 480 x 832 pixels in any aspect ratio."
    return [pixels_input("width", 832, trained), pixels_input("height", 480, "Pixels, a multiple of 16.")]


def size_input(sizes: Mapping[str, Resolution | None], tooltip: str) -> io.Combo.Input:
    """Which size a video gets; one of `sizes`, of which the first is the default."""
    return io.Combo.Input("size", options=list(sizes), default=next(iter(sizes)), optional=True, tooltip=tooltip)


def refined_size_inputs() -> list[io.Input]:
    """Size, width and height of a refined video."""
    pixels = "Pixels, only for custom; multiples of 64 are best."
    return [
        size_input(
            REFINED_SIZES,
            "720p: the trained size of about 0.9 megapixels that is nearest in shape to the frames, 1280 x 704 "
            "for 832 x 480. custom: width x height.",
        ),
        pixels_input("width", REFINED_WIDTH, pixels, optional=True),
        pixels_input("height", REFINED_HEIGHT, pixels, optional=True),
    ]


def check_size(width: int = PIXEL_MULTIPLE, height: int = PIXEL_MULTIPLE, length: int = 1, size: str = CUSTOM) -> None:
    """Whether there is a video of this size; a trained `size` takes width and height only as a shape.

    Raises:
        ValueError: as `PixelShape.latent`, or size is not one of `SIZES`.
    """
    _check_size(SIZES, size, PixelShape(length, height, width))


def check_refined_size(width: int = PIXEL_MULTIPLE, height: int = PIXEL_MULTIPLE, size: str = TRAINED) -> None:
    """Raise ValueError if there is no refined video of this size."""
    _check_size(REFINED_SIZES, size, PixelShape(1, height, width))


def _check_size(sizes: Mapping[str, Resolution | None], size: str, asked: PixelShape) -> None:
    if size not in list(sizes):
        raise ValueError(f"size is {size!r}; it must be one of {', '.join(sizes)}.")
    if sizes[size] is not None:
        asked = PixelShape(asked.frames, PIXEL_MULTIPLE, PIXEL_MULTIPLE)
    asked.latent()


def frame_size(trained: Resolution | None, width: int, height: int, frames: Tensor | None) -> buckets.Size:
    """Pixels of one frame: as asked for, or the trained size nearest in shape to the frames (or to width x height).

    Args:
        trained: which trained sizes; None for width x height.
        width, height: pixels.
        frames: `[F, H, W, C]`.

    Raises:
        ValueError: no trained size has nearly that shape.
    """
    asked = buckets.Size(height, width)
    if trained is None:
        return asked
    return buckets.nearest(trained, asked if frames is None else buckets.Size(*frames.shape[1:3]))


def length_input(
    tooltip: str, least: int = 1, step: int | None = TEMPORAL_SCALE, optional: bool = False
) -> io.Int.Input:
    """Frames of a video or of a segment."""
    span: dict[str, Any] = {"min": least, "max": nodes.MAX_RESOLUTION, "step": step}
    return io.Int.Input("length", default=TRAINED_LENGTH, optional=optional, tooltip=tooltip, **span)


def cond_frames_input(
    tooltip: str, default: int = DEFAULT_COND_FRAMES, step: int | None = TEMPORAL_SCALE, optional: bool = False
) -> io.Int.Input:
    """How many frames are given, or shared by two segments."""
    span: dict[str, Any] = {"min": 1, "max": nodes.MAX_RESOLUTION, "step": step}
    return io.Int.Input("num_cond_frames", default=default, optional=optional, tooltip=tooltip, **span)


def check_continuation(length: int = LINKED_LENGTH, num_cond_frames: int = 1) -> None:
    """Raise ValueError if there is no video of this length, or nothing of it is left to generate."""
    check_size(length=length)
    check_leaves_room(LENGTH_GRID.floor(num_cond_frames), length)


def seed_input(tooltip: str, control: bool | io.ControlAfterGenerate) -> io.Int.Input:
    """The seed of the noise, and what the graph editor makes of it after a run."""
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=control, tooltip=tooltip)


def steps_input(tooltip: str) -> io.Int.Input:
    """Steps of a schedule."""
    return io.Int.Input("steps", default=50, min=1, max=1000, tooltip=tooltip)


def cfg_input(tooltip: str) -> io.Float.Input:
    """The guidance scale."""
    return io.Float.Input("cfg", default=4.0, min=1.0, max=30.0, step=0.1, tooltip=tooltip)


def mode_input() -> io.Combo.Input:
    """The schedule."""
    return io.Combo.Input("mode", options=list(schedule.MODES), default="base", tooltip=MODE_TOOLTIP)


def threshold_input() -> io.Float.Input:
    """The noise level that mode refine starts from."""
    return io.Float.Input(
        "threshold",
        default=schedule.DEFAULT_REFINE_THRESHOLD,
        min=0.01,
        max=0.99,
        step=0.01,
        optional=True,
        advanced=True,
        tooltip="Only for refine: the noise level (0..1) that it starts from; 0.5 in the reference.",
    )


def check_schedule(
    steps: int = 1, mode: schedule.Mode = "base", threshold: float = schedule.DEFAULT_REFINE_THRESHOLD
) -> None:
    """Raise ValueError if there is no such schedule."""
    schedule.sigmas(mode, steps, schedule.DEFAULT_SHIFT, threshold)


def refine_mode_input() -> io.Combo.Input:
    """What refinement does."""
    return io.Combo.Input(
        "mode",
        options=list(refine.REFINE_MODES),
        default=refine.REFINE_MODES[0],
        tooltip="spatial+temporal: larger, and twice as many frames at twice the frame rate (15 to 30 per second). "
        "spatial: larger only.",
    )


def filename_prefix_input(default: str) -> io.String.Input:
    """Where segments are kept."""
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Folder and beginning of the names of the segments' files in the output folder.",
    )
