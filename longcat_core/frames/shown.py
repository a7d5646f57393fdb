"""Which frames of a decoded latent are the video: refinement pads it to whole chunks of block-sparse attention.

Every LATENT of our nodes says so under one key, which the samplers and latent nodes of ComfyUI carry along. One without
the key was made by another node, or comes from Load Latent, since Save Latent keeps nothing but the samples.
"""

import logging
from typing import Any

from einops import rearrange
from torch import Tensor

from . import buckets
from .geometry import TEMPORAL_SCALE, LatentShape, latent_frames, up_to_multiple, video_frames

SHOWN_FRAMES = "longcat_shown_frames"
"""The key of a LATENT: the first decoded frame that is not padding and how many there are, or `ALL_FRAMES`."""
ALL_FRAMES = None
TRAINED_LATENTS = latent_frames(93)
"""The most that a video has which is not refined; refinement makes about twice as many of them."""
LATENT_MULTIPLE = 4
"""Condition and noise latents of a refined video are each a multiple of this, the chunk of block-sparse attention."""


def is_padded(latent: dict[str, Any]) -> bool:
    """Whether a LATENT says that some of its frames are padding."""
    whole = (0, video_frames(latent["samples"].shape[2]))
    return latent.get(SHOWN_FRAMES) not in (ALL_FRAMES, whole)


def check_says_what_is_shown(latent: dict[str, Any], title: str) -> None:
    """Refuse a LATENT that does not say what is padding and has the look of a refined one.

    Every refined one has a multiple of 4 latent frames, and so do others: only the trained size of refined videos and
    more frames than others are trained with make it likely. Otherwise the log says which frames may be padding.

    Args:
        latent: with samples `[B, 16, T, H, W]`.
        title: of the node that got it.

    Raises:
        ValueError: the number of frames and the size are those of a refined video.
    """
    shape = LatentShape(*latent["samples"].shape[2:])
    if SHOWN_FRAMES in latent or shape.frames % LATENT_MULTIPLE:
        return
    video = shape.pixels()
    is_refined_size = buckets.Size(video.height, video.width) in buckets.BUCKETS[buckets.REFINED]
    if is_refined_size and shape.frames > TRAINED_LATENTS:
        raise ValueError(
            f"The latent has the size of a refined video, {shape.frames} latent frames of {video.width} x "
            f"{video.height} pixels, but does not say which of its frames are padding, as a latent from Load Latent "
            f"never does. Connect the sampler's own latent, or decode this one with VAE Decode, which leaves all "
            f"frames in, and, if it was refined, cut off what repeats the first or the last frame."
        )
    logging.info(
        "%s: the latent does not say which of its %s frames are the video; if it was refined and then saved, up to %s "
        "at the beginning and at the end are padding.",
        title,
        video.frames,
        most_padding(),
    )


def most_padding() -> int:
    """How many frames refinement adds at most to either end of a video."""
    return LATENT_MULTIPLE * TEMPORAL_SCALE - 1


def shown(frames: Tensor, latent: dict[str, Any]) -> Tensor:
    """Decoded frames `[F, H, W, C]` of a LATENT, videos of a batch one after the other, without those of the padding.

    Raises:
        ValueError: they are fewer or more than the LATENT says, because another node cut or lengthened it.
    """
    span = latent.get(SHOWN_FRAMES)
    if span is ALL_FRAMES:
        return frames
    first, count = span
    videos = rearrange(frames, "(video frame) h w c -> video frame h w c", video=latent["samples"].shape[0])
    num_frames, expected = videos.shape[1], video_frames(up_to_multiple(latent_frames(first + count), LATENT_MULTIPLE))
    if num_frames != expected:
        done = "cut" if num_frames < expected else "lengthened"
        raise ValueError(
            f"The latent was {done} after LongCat Refine Latent: its video should be frames {first} to "
            f"{first + count - 1} of {expected}, but it has {num_frames}. Do not change its length, or decode it with "
            f"VAE Decode, which leaves the padding in."
        )
    return rearrange(videos[:, first : first + count], "video frame h w c -> (video frame) h w c")
