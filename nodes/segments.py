"""Make the segments of a storyboard, one after the other, and keep each as soon as it is there."""

import logging
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types
from server import PromptServer
from torch import Tensor

from ..longcat_core import condition, storyboard
from ..longcat_core.geometry import FRAMES_PER_SECOND
from ..longcat_core.storyboard import Segment, SegmentFiles
from .latents import CUSTOM, LongCatLatent
from .sampling import LongCatSampler
from .text import LongCatTextEncode
from .video import LongCatDecode


@dataclass(frozen=True)
class Settings:
    """What all segments have in common."""

    negative: str
    width: int
    height: int
    length: int
    num_cond_frames: int
    steps: int
    cfg: float
    size: str = CUSTOM
    color_anchor: float = 0.0
    condition_noise: float = 0.0


@dataclass(frozen=True)
class Studio:
    """What makes the segments of one storyboard."""

    model: Any
    clip: Any
    vae: Any
    frames: Tensor | None
    settings: Settings

    def encode(self, prompts: list[str]) -> dict[str, Any]:
        """Conditioning of every prompt, the negative one included."""
        different = dict.fromkeys([*prompts, self.settings.negative])
        return {prompt: LongCatTextEncode.execute(self.clip, prompt).args[0] for prompt in different}

    def begin(self, previous: Tensor | None) -> dict[str, Any]:
        """The LATENT that a segment starts from: empty, with the given frames, or with the end of the previous one."""
        s = self.settings
        if previous is not None:
            return condition.continued(previous, s.length, s.num_cond_frames)
        size = (s.width, s.height, s.length)
        return LongCatLatent.execute(*size, 1, self.vae, self.frames, s.num_cond_frames, s.size).args[0]

    def make(self, segment: Segment, conditionings: dict[str, Any], latent: dict, first: Tensor | None) -> Tensor:
        """Samples `[1, 16, T, H, W]` of a segment; its condition frames are exactly those of `latent`."""
        s = self.settings
        n = condition.leading_clean_frames(latent.get("noise_mask"))
        given = latent["samples"][:, :, :n].clone()
        if n and s.condition_noise:
            latent["samples"][:, :, :n] = condition.lightly_noised(given, s.condition_noise, segment.seed)
        prompts = (conditionings[segment.prompt], conditionings[s.negative])
        sampled = LongCatSampler.execute(self.model, *prompts, latent, segment.seed, s.steps, s.cfg, segment.mode)
        samples = sampled.args[0]["samples"]
        if first is not None:
            samples = condition.color_anchored(samples, first, s.color_anchor)
        samples[:, :, :n] = given
        return samples

    def decode(self, samples: Tensor) -> Tensor:
        """Frames `[F, H, W, 3]` of a segment."""
        return LongCatDecode.execute(self.vae, {"samples": samples}).args[0]


def save_frames(path: Path, frames: Tensor, metadata: dict[str, Any] | None) -> None:
    """Write frames `[F, H, W, 3]` as a video that appears under its name only when it is complete."""
    video = Types.VideoComponents(images=frames, frame_rate=Fraction(FRAMES_PER_SECOND))
    with storyboard.completed(path) as temporary:
        InputImpl.VideoFromComponents(video).save_to(str(temporary), format=Types.VideoContainer.MP4, metadata=metadata)


def make_video(
    studio: Studio, segments: list[Segment], files: SegmentFiles, node_id: str, metadata: dict[str, Any] | None
) -> Tensor:
    """The whole video `[F, H, W, 3]`; every segment is on disk before the next one begins, and is not made twice."""
    to_do = [segment for segment in segments if not files.latent(segment).exists()]
    logging.info("LongCat Storyboard: %s of %s segments are to be made.", len(to_do), len(segments))
    conditionings = studio.encode([segment.prompt for segment in to_do]) if to_do else {}
    overlap, length = studio.settings.num_cond_frames, studio.settings.length
    video: Tensor | None = None
    samples: Tensor | None = None
    first: Tensor | None = None
    for segment in segments:
        comfy.model_management.throw_exception_if_processing_interrupted()
        PromptServer.instance.send_progress_text(f"Segment {segment.number} of {len(segments)}", node_id)
        finished = files.load_latent(segment)
        if finished is None:
            if segment.prompt not in conditionings:  # its file was there when the run began
                conditionings |= studio.encode([segment.prompt])
            finished = studio.make(segment, conditionings, studio.begin(samples), first)
            files.save_latent(segment, finished)
        samples = finished.to(comfy.model_management.intermediate_device())
        first = samples if first is None else first

        new = studio.decode(samples)[overlap if segment.index else 0 :]
        if video is None:
            video = torch.empty(length + (len(segments) - 1) * (length - overlap), *new.shape[1:])
        end = length + segment.index * (length - overlap)
        video[end - len(new) : end] = new
        if not files.video(segment).exists():
            save_frames(files.video(segment), new, metadata)
    return video


def video_metadata(hidden: Any) -> dict[str, Any] | None:
    """What ComfyUI writes into its videos, so that dropping one on the graph editor opens its workflow."""
    if args.disable_metadata:
        return None
    return {"prompt": hidden.dynprompt.original_prompt, **(hidden.extra_pnginfo or {})}
