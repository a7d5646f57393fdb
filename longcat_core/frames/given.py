"""Frames that a video is given: an image that it begins with, or the end of the video that it continues."""

import logging

from torch import Tensor

from .geometry import LENGTH_GRID, TEMPORAL_SCALE

DEFAULT_COND_FRAMES = 13  # what the reference continues videos with


def rgb(frames: Tensor) -> Tensor:
    """Frames `[F, H, W, C]` without what stands behind their three colors; grey ones (C = 1) get three."""
    return frames.expand(-1, -1, -1, 3) if frames.shape[-1] == 1 else frames[..., :3]


def whole_latents(num_cond_frames: int) -> int:
    """`num_cond_frames` rounded down to 4n+1, since a latent frame is the first frame or four later ones.

    Raises:
        ValueError: it is less than 1.
    """
    if num_cond_frames < 1:
        raise ValueError(f"num_cond_frames is {num_cond_frames}; it must be at least 1.")
    rounded = LENGTH_GRID.floor(num_cond_frames)
    if rounded != num_cond_frames:
        logging.warning("LongCat: num_cond_frames must be 4n+1; %s was rounded to %s.", num_cond_frames, rounded)
    return rounded


def check_leaves_room(num_cond_frames: int, length: int) -> None:
    """Raise ValueError if condition frames leave nothing to generate in a video of `length` frames."""
    if num_cond_frames >= length:
        lower = "Lower num_cond_frames, or raise" if num_cond_frames > 1 else "Raise"
        raise ValueError(
            f"{num_cond_frames} condition frames leave nothing to generate in a video of {length} frames. {lower} "
            f"length to at least {num_cond_frames + TEMPORAL_SCALE}."
        )


def given_frames(frames: Tensor, num_cond_frames: int, length: int) -> Tensor:
    """The frames to go on from `[F, H, W, C]`: an image as it is, of a video the last `num_cond_frames`.

    Raises:
        ValueError: the video is shorter than that, or nothing would be left to generate.
    """
    if not len(frames):
        raise ValueError("The given video has no frames: connect an image, or a video that has some.")
    num_cond_frames = 1 if len(frames) == 1 else whole_latents(num_cond_frames)
    if len(frames) < num_cond_frames:
        raise ValueError(
            f"The video has {len(frames)} frames and num_cond_frames is {num_cond_frames}. Connect a longer video, or "
            f"set num_cond_frames to {LENGTH_GRID.floor(len(frames))}; 1 goes on from its last frame alone."
        )
    check_leaves_room(num_cond_frames, length)
    return frames[-num_cond_frames:]
