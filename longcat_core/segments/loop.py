"""Make the segments of a long video, one after the other, and keep each as soon as it is there.

What a segment is made from and with is the `Studio`'s, where the video is shown and written the `Host`'s.
"""

import logging
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from .files import SegmentFiles, completed
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
        """The node's name, for the log."""

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
        """Samples `[1, 16, T, H, W]` of a segment; `first` are those of the first one, None where this is it."""

    def decode(self, segment: Segment, samples: Tensor) -> Tensor:
        """Frames of a segment, the shared ones included."""


class Host(Protocol):
    """The program that a video is made in."""

    @property
    def files(self) -> SegmentFiles:
        """Where the segments are kept."""

    def show(self, text: str) -> None:
        """Tell the user how far it is."""

    def stop_if_interrupted(self) -> None:
        """Raise if the user has cancelled the run."""

    def kept(self, samples: Tensor) -> Tensor:
        """Samples on the device where what lies between two steps is kept."""

    def write_video(self, path: Path, frames: Tensor, fps: Fraction) -> None:
        """Write frames `[F, H, W, 3]` as a video file."""


def make_video(studio: Studio, segments: list[Segment], host: Host) -> Tensor:
    """The whole video `[F, H, W, 3]`; every segment is on disk before the next one begins, and is not made twice.

    Raises:
        ValueError: as `SegmentFiles.load_latent`.
        OSError: as `completed`.
    """
    files = host.files
    to_do = [segment for segment in segments if not files.latent(segment).exists()]
    logging.info("%s: %s of %s segments are to be made.", studio.title, len(to_do), len(segments))
    if to_do:
        studio.prepare(to_do)
    video: Tensor | None = None
    previous: Made | None = None
    first: Tensor | None = None
    end = 0
    for segment in segments:
        host.stop_if_interrupted()
        host.show(f"Segment {segment.number} of {len(segments)}")
        samples = files.load_latent(segment)
        if samples is None:
            samples = studio.make(segment, previous, first)
            files.save_latent(segment, samples)
        samples = host.kept(samples)
        first = samples if first is None else first

        previous = Made(samples, studio.decode(segment, samples))
        new = previous.frames[studio.num_shared(segment) :]
        if video is None:
            video = new.new_empty(studio.num_frames(len(segments)), *new.shape[1:])
        video[end : end + len(new)] = new
        end += len(new)
        if not files.has_video(segment):
            with completed(files.video(segment)) as temporary:
                host.write_video(temporary, new, studio.fps)
    assert video is not None
    return video
