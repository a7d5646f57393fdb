"""Make the segments of a long video, one after the other."""

from fractions import Fraction
from typing import NamedTuple, Protocol

from torch import Tensor

from .plan import Segment


class Made(NamedTuple):
    """A finished segment."""

    samples: Tensor
    """`[1, 16, T, H, W]`, as the sampler left them."""
    frames: Tensor
    """`[F, H, W, 3]`, those shared with the segment before included."""


class Studio(Protocol):
    """What makes the segments of one video."""

    @property
    def title(self) -> str:
        """Of the node."""

    @property
    def fps(self) -> Fraction:
        """Frames per second."""

    def num_frames(self, num_segments: int) -> int:
        """Frames of the whole video."""

    def num_shared(self, segment: Segment) -> int:
        """Frames at the beginning of a segment that the one before has too."""

    def prepare(self, segments: list[Segment]) -> None:
        """What can be done before the first of these segments is made."""

    def make(self, segment: Segment, previous: Made | None, first: Tensor | None) -> Tensor:
        """Samples of a segment, from the one before and from the samples of the first."""

    def decode(self, segment: Segment, samples: Tensor) -> Tensor:
        """Frames of a segment, the shared ones included."""
