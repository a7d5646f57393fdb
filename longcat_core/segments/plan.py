"""Long videos in segments: which there are, and what each is made from.

A segment is a video of ordinary length; every one but the first begins with the last frames of the one before: those of
a storyboard as latents, refined ones as frames. Its fingerprint covers its own prompt or frames, its seed and mode, all
that the video is made with (fingerprint.py), and the segments before it. So changing the prompt of the third keeps the
first two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from ..schedule import Mode
from .fingerprint import FILE_VERSION, digest, frames_digest

SeedPolicy = Literal["increment", "same"]
SEED_POLICIES: tuple[SeedPolicy, ...] = get_args(SeedPolicy)
STORYBOARD_MODES: tuple[Mode, ...] = ("enhance_hf", "base", "distill")
MAX_SEED = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Segment:
    """What one segment is made from."""

    index: int
    prompt: str
    seed: int
    mode: Mode
    fingerprint: str

    @property
    def number(self) -> int:
        """Counted from 1, as files and messages do."""
        return self.index + 1


def prompt_list(text: str) -> list[str]:
    """Prompts of a text, one per line; empty lines do not count.

    Raises:
        ValueError: there is none.
    """
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError("prompts is empty. Write one prompt per line: each line is a segment of the video.")
    return prompts


def prompts_of_segments(text: str, num_segments: int) -> list[str]:
    """One prompt per segment: those of the text, or its only one for all segments.

    Args:
        text: as for `prompt_list`.
        num_segments: 0 means as many as there are prompts.

    Raises:
        ValueError: there are several prompts, but not as many as segments.
    """
    prompts = prompt_list(text)
    if num_segments in (0, len(prompts)):
        return prompts
    if len(prompts) > 1:
        raise ValueError(
            f"There are {len(prompts)} prompts (lines) for {num_segments} segments. Write one prompt for all segments "
            f"or one for each, or set segments to 0, which takes as many as there are prompts."
        )
    return prompts * num_segments


def of_storyboard(
    prompts: list[str],
    mode: Mode,
    seed: int,
    seed_policy: SeedPolicy,
    continues: bool,
    settings: Mapping[str, Any],
) -> list[Segment]:
    """The segments of a video.

    Args:
        prompts: one per segment.
        mode: schedule; enhance_hf is for continuations and becomes base in a first segment that is none.
        seed: of the first segment; counted up or kept, as `seed_policy` says.
        continues: whether the first segment goes on from a video.
        settings: everything else that segments are made from, as JSON values.
    """
    segments: list[Segment] = []
    fingerprint = digest(FILE_VERSION, dict(settings))
    for index, prompt in enumerate(prompts):
        begins = index == 0 and not continues
        segment_mode = "base" if begins and mode == "enhance_hf" else mode
        segment_seed = (seed + index) % (MAX_SEED + 1) if seed_policy == "increment" else seed
        fingerprint = digest(fingerprint, prompt, segment_seed, segment_mode)
        segments.append(Segment(index, prompt, segment_seed, segment_mode, fingerprint))
    return segments


def parts(num_frames: int, length: int, num_shared: int) -> list[slice]:
    """The frames of each segment of a long video: `length` each, `num_shared` of them also the segment's before.

    The last one is as long as it happens to be, so that a video that grows keeps its finished segments.

    Raises:
        ValueError: a segment adds nothing.
    """
    if num_shared >= length:
        raise ValueError(
            f"num_cond_frames is {num_shared} and length {length}: segments that share all their frames add nothing. "
            f"Lower num_cond_frames, or raise length."
        )
    starts = range(0, max(1, num_frames - num_shared), length - num_shared)
    return [slice(start, min(start + length, num_frames)) for start in starts]


def of_refinement(frames: Tensor, segments: list[slice], seed: int, settings: dict[str, Any]) -> list[Segment]:
    """What each segment of a long video is made from; a fingerprint covers its own frames and the segments before.

    Args:
        frames: the whole video `[F, H, W, C]`.
        segments: as `parts`.
        seed: of the first, counted up.
        settings: everything else that segments are made from, as JSON values.
    """
    planned: list[Segment] = []
    fingerprint = digest(FILE_VERSION, settings)
    for index, part in enumerate(segments):
        segment_seed = (seed + index) % (MAX_SEED + 1)
        fingerprint = digest(fingerprint, frames_digest(frames[part]), segment_seed)
        planned.append(Segment(index, "", segment_seed, "refine", fingerprint))
    return planned
