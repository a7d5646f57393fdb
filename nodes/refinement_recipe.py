"""How the segments of a video are refined: enlarged, sampled from half noise behind the end of the one before, decoded.

The steps are those of the nodes, so that LongCat Refine Video gives what a graph of single nodes does.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor

from ..longcat_core.frames import buckets, refine
from ..longcat_core.frames.refine import RefineFrames, RefineMode
from ..longcat_core.frames.shown import SHOWN_FRAMES
from ..longcat_core.segments.loop import Made
from ..longcat_core.segments.plan import Segment
from .refine import refining
from .sampling import sampled
from .video import decoded


@dataclass(frozen=True)
class RefineSettings:
    """What all segments have in common."""

    mode: RefineMode
    size: buckets.Size
    num_cond_frames: int
    steps: int
    threshold: float


@dataclass(frozen=True)
class Refinement:
    """Refines the segments of one video `[F, H, W, C]`."""

    model: Any
    positive: Any
    vae: Any
    frames: Tensor
    parts: list[slice]
    fps: Fraction
    settings: RefineSettings
    title: ClassVar[str] = "LongCat Refine Video"

    def num_frames(self, num_segments: int) -> int:
        """Frames of the whole refined video."""
        return refine.refined_length(len(self.frames), self.settings.mode)

    def num_shared(self, segment: Segment) -> int:
        """Refined frames at the beginning of a segment that the one before has too."""
        return refine.refined_length(self.settings.num_cond_frames, self.settings.mode) if segment.index else 0

    def prepare(self, segments: list[Segment]) -> None:
        """Nothing: the prompt comes encoded."""

    def make(self, segment: Segment, previous: Made | None, first: Tensor | None) -> Tensor:
        """Samples `[1, 16, T, H, W]` of a segment that begins with the end of the one before."""
        s, given = self.settings, None if previous is None else previous.frames
        source = self.frames[self.parts[segment.index]]
        latent = refining(self.vae, source, s.mode, s.size, given, self.num_shared(segment))
        # At cfg 1 there is no negative prompt.
        finished = sampled(
            self.model,
            self.positive,
            self.positive,
            latent,
            segment.seed,
            s.steps,
            1.0,
            segment.mode,
            s.threshold,
        )
        return finished["samples"]

    def decode(self, segment: Segment, samples: Tensor) -> Tensor:
        """Frames `[F, H, W, 3]` of a segment, the shared ones included."""
        length = len(self.frames[self.parts[segment.index]])
        plan = RefineFrames(refine.refined_length(length, self.settings.mode), self.num_shared(segment))
        return decoded(self.vae, {"samples": samples, SHOWN_FRAMES: plan.shown})
