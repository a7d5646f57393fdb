"""The loop over the segments of a long video, without a model and without ComfyUI's server."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longcat_core.segments.files import SegmentFiles
from longcat_core.segments.loop import Made, make_video
from longcat_core.segments.plan import Segment, of_storyboard

LENGTH, SHARED = 5, 2
SEGMENTS = of_storyboard(["a cat", "a dog", "a bird"], "base", 0, "increment", False, {})


@dataclass
class FakeStudio:
    """Every frame of segment n is n."""

    title: str = "Fake"
    fps: Fraction = Fraction(15)
    prepared: list[int] = field(default_factory=list)
    made: list[tuple[int, bool, bool]] = field(default_factory=list)

    def num_frames(self, num_segments: int) -> int:
        return LENGTH + (num_segments - 1) * (LENGTH - SHARED)

    def num_shared(self, segment: Segment) -> int:
        return SHARED if segment.index else 0

    def prepare(self, segments: list[Segment]) -> None:
        self.prepared += [segment.number for segment in segments]

    def make(self, segment: Segment, previous: Made | None, first: Tensor | None) -> Tensor:
        self.made.append((segment.number, previous is not None, first is not None))
        return torch.full((1, 16, 2, 1, 1), float(segment.number))

    def decode(self, segment: Segment, samples: Tensor) -> Tensor:
        return samples.mean().expand(LENGTH, 8, 8, 3)


@dataclass
class FakeHost:
    """Writes texts for videos, and is interrupted when it shows a segment's number."""

    files: SegmentFiles
    interrupted_at: int = 0
    shown: list[str] = field(default_factory=list)

    def show(self, text: str) -> None:
        self.shown.append(text)

    def stop_if_interrupted(self) -> None:
        if len(self.shown) + 1 == self.interrupted_at:
            raise KeyboardInterrupt

    def kept(self, samples: Tensor) -> Tensor:
        return samples

    def write_video(self, path: Path, frames: Tensor, fps: Fraction) -> None:
        path.write_text(f"{len(frames)} frames of {frames.mean():g}, {fps} per second")


@pytest.fixture
def files(tmp_path: Path) -> SegmentFiles:
    return SegmentFiles(tmp_path, "story")


def numbers(video: Tensor) -> list[int]:
    return [int(frame.mean()) for frame in video]


def test_new_frames_follow_each_other_and_each_segment_has_its_files(files: SegmentFiles) -> None:
    studio, host = FakeStudio(), FakeHost(files)
    assert numbers(make_video(studio, SEGMENTS, host)) == [1] * 5 + [2] * 3 + [3] * 3
    assert studio.made == [(1, False, False), (2, True, True), (3, True, True)]
    assert host.shown == [f"Segment {number} of 3" for number in (1, 2, 3)]
    assert [files.video(segment).read_text() for segment in SEGMENTS] == [
        f"{count} frames of {number}, 15 per second" for number, count in ((1, 5), (2, 3), (3, 3))
    ]


def test_an_interrupted_video_goes_on_with_the_first_segment_that_is_not_there(files: SegmentFiles) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_video(FakeStudio(), SEGMENTS, FakeHost(files, interrupted_at=3))
    studio = FakeStudio()
    assert numbers(make_video(studio, SEGMENTS, FakeHost(files))) == [1] * 5 + [2] * 3 + [3] * 3
    assert studio.prepared == [3]
    assert studio.made == [(3, True, True)]


def test_a_finished_video_makes_and_prepares_nothing_but_a_lost_file(files: SegmentFiles) -> None:
    make_video(FakeStudio(), SEGMENTS, FakeHost(files))
    lost = files.video(SEGMENTS[1])
    before = lost.read_text()
    lost.unlink()
    studio = FakeStudio()
    make_video(studio, SEGMENTS, FakeHost(files))
    assert (studio.prepared, studio.made, lost.read_text()) == ([], [], before)


def test_a_video_that_cannot_be_written_keeps_its_latent(files: SegmentFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FakeHost, "write_video", fail)
    with pytest.raises(OSError, match=r"story_001_\w+\.mp4 cannot be written: .*No space left"):
        make_video(FakeStudio(), SEGMENTS, FakeHost(files))
    assert [path.name for path in files.folder.iterdir()] == [files.latent(SEGMENTS[0]).name]
