"""How the segments of a storyboard are made: text, the end of the segment before, the sampler, the decoder.

The steps are those of the nodes, so that a storyboard gives what a graph of single nodes does.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor

from ..longcat_core.frames.drift import color_anchored, lightly_noised
from ..longcat_core.frames.geometry import FRAMES_PER_SECOND
from ..longcat_core.frames.latents import leading_clean_frames
from ..longcat_core.frames.waiting import continued
from ..longcat_core.segments.loop import Made
from ..longcat_core.segments.plan import Segment
from .inputs import CUSTOM
from .latents import starting_latent
from .sampling import sampled
from .text import encoded_prompt
from .video import decoded


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
class Storyboard:
    """Makes the segments of one storyboard."""

    model: Any
    clip: Any
    vae: Any
    frames: Tensor | None
    settings: Settings
    conditionings: dict[str, Any] = field(default_factory=dict)
    title: ClassVar[str] = "LongCat Storyboard"
    fps: ClassVar[Fraction] = Fraction(FRAMES_PER_SECOND)

    def num_frames(self, num_segments: int) -> int:
        """Frames of the whole video."""
        s = self.settings
        return s.length + (num_segments - 1) * (s.length - s.num_cond_frames)

    def num_shared(self, segment: Segment) -> int:
        """Frames at the beginning of a segment that the one before has too."""
        return self.settings.num_cond_frames if segment.index else 0

    def prepare(self, segments: list[Segment]) -> None:
        """Encode the prompts of segments, the negative one included, where that is not done yet."""
        for prompt in dict.fromkeys([*(segment.prompt for segment in segments), self.settings.negative]):
            if prompt not in self.conditionings:
                self.conditionings[prompt] = encoded_prompt(self.clip, prompt)

    def begin(self, previous: Made | None) -> dict[str, Any]:
        """The LATENT that a segment starts from: empty, with the given frames, or with the end of the previous one."""
        s = self.settings
        if previous is not None:
            return continued(previous.samples, s.length, s.num_cond_frames)
        return starting_latent(
            s.width,
            s.height,
            s.length,
            vae=self.vae,
            frames=self.frames,
            num_cond_frames=s.num_cond_frames,
            size=s.size,
        )

    def make(self, segment: Segment, previous: Made | None, first: Tensor | None) -> Tensor:
        """Samples `[1, 16, T, H, W]` of a segment; its condition frames are exactly those that it was given."""
        s, latent = self.settings, self.begin(previous)
        self.prepare([segment])
        n = leading_clean_frames(latent.get("noise_mask"))
        given = latent["samples"][:, :, :n].clone()
        if n and s.condition_noise:
            latent["samples"][:, :, :n] = lightly_noised(given, s.condition_noise, segment.seed)
        positive, negative = self.conditionings[segment.prompt], self.conditionings[s.negative]
        finished = sampled(self.model, positive, negative, latent, segment.seed, s.steps, s.cfg, segment.mode)
        samples = finished["samples"]
        if first is not None:
            samples = color_anchored(samples, first, s.color_anchor)
        samples[:, :, :n] = given
        return samples

    def decode(self, segment: Segment, samples: Tensor) -> Tensor:
        """Frames `[F, H, W, 3]` of a segment, the shared ones included."""
        return decoded(self.vae, {"samples": samples})
