"""Frames and latents of refined videos."""

import pytest
import torch

from longcat_core.frames import buckets, refine
from longcat_core.frames.geometry import PixelShape, video_frames
from longcat_core.frames.refine import RefineFrames
from longcat_core.frames.shown import ALL_FRAMES, SHOWN_FRAMES, check_says_what_is_shown, is_padded, most_padding, shown
from longcat_core.segments import plan


@pytest.mark.parametrize(
    ("num_frames", "num_cond_frames", "cond_latents", "latents", "front", "back"),
    [
        (186, 0, 0, 48, 0, 3),
        (186, 26, 8, 48, 3, 0),
        (93, 13, 4, 24, 0, 0),
        (93, 0, 0, 24, 0, 0),
        (186, 1, 4, 52, 12, 7),
        (10, 0, 0, 4, 0, 3),
        (14, 5, 4, 8, 8, 7),
        (4, 0, 0, 4, 0, 9),
        (16, 0, 0, 8, 0, 13),
    ],
)
def test_padding(num_frames: int, num_cond_frames: int, cond_latents: int, latents: int, front: int, back: int) -> None:
    """The first three rows are those of the reference; of the last one it loses three frames."""
    plan = RefineFrames(num_frames, num_cond_frames)
    assert (plan.num_cond_latents, plan.num_latents, plan.front, plan.back) == (cond_latents, latents, front, back)
    assert plan.shown == (front, num_frames)


def test_padding_always_fits() -> None:
    for num_frames in range(1, 120):
        for num_cond_frames in range(num_frames):
            plan = RefineFrames(num_frames, num_cond_frames)
            assert plan.num_latents % 4 == plan.num_cond_latents % 4 == 0
            assert 0 <= plan.front < 16
            assert 0 <= plan.back < 16
            assert plan.front + num_frames + plan.back == video_frames(plan.num_latents)
            if num_cond_frames:
                assert plan.front + num_cond_frames == video_frames(plan.num_cond_latents)


def test_nothing_to_refine_is_said() -> None:
    with pytest.raises(ValueError, match=r"26 condition frames leave nothing to refine in a video .* 26 frames"):
        RefineFrames(26, 26)


def test_enlarging_keeps_corners_and_is_linear() -> None:
    ramp = torch.linspace(0, 1, 5).view(5, 1, 1, 1) + torch.linspace(0, 1, 3).view(1, 3, 1, 1).expand(5, 3, 4, 3)
    found = refine.upscaled(ramp, 10, 6, 8)
    expected = torch.linspace(0, 1, 10).view(10, 1, 1, 1) + torch.linspace(0, 1, 6).view(1, 6, 1, 1)
    assert found.shape == (10, 6, 8, 3)
    assert torch.allclose(found, expected.expand(10, 6, 8, 3), atol=1e-6)


def test_padded_frames_repeat_the_ends() -> None:
    frames = torch.arange(3.0).view(3, 1, 1, 1)
    assert refine.padded(frames, 2, 3).flatten().tolist() == [0, 0, 0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (93, [(0, 93)]),
        (50, [(0, 50)]),
        (94, [(0, 93), (80, 94)]),
        (173, [(0, 93), (80, 173)]),
        (174, [(0, 93), (80, 173), (160, 174)]),
        (973, [(80 * i, 80 * i + 93) for i in range(12)]),
    ],
)
def test_parts_of_a_long_video(num_frames: int, expected: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in plan.parts(num_frames, 93, 13)] == expected


def test_parts_that_add_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_cond_frames is 13 and length 13: .* add nothing"):
        plan.parts(100, 13, 13)


def test_a_segment_is_made_again_if_its_frames_or_those_before_change() -> None:
    frames = torch.rand(40, 2, 2, 3)
    parts = plan.parts(40, 20, 5)

    def fingerprints(frames: torch.Tensor, seed: int = 3, **settings: int) -> list[str]:
        return [segment.fingerprint for segment in plan.of_refinement(frames, parts, seed, settings)]

    same, changed = fingerprints(frames), frames.clone()
    changed[22] = 0  # of the second segment, and not of the third
    assert [a == b for a, b in zip(same, fingerprints(changed), strict=True)] == [True, False, False]
    assert fingerprints(frames) == same
    assert not set(same) & set(fingerprints(frames, seed=4))
    assert not set(same) & set(fingerprints(frames, steps=9))
    assert [segment.seed for segment in plan.of_refinement(frames, parts, 2**64 - 1, {})] == [2**64 - 1, 0, 1]


def refined_latent(plan: RefineFrames, num_latents: int, batch_size: int = 1) -> dict:
    """A LATENT of zeros that says what `plan` says."""
    return {"samples": torch.zeros(batch_size, 16, num_latents, 1, 1), SHOWN_FRAMES: plan.shown}


def test_a_latent_without_padding_is_shown_whole() -> None:
    frames, samples = torch.rand(13, 2, 2, 3), torch.zeros(1, 16, 4, 1, 1)
    assert shown(frames, {"samples": samples}) is frames
    assert shown(frames, {"samples": samples, SHOWN_FRAMES: ALL_FRAMES}) is frames
    assert torch.equal(shown(frames, {"samples": samples, SHOWN_FRAMES: (1, 3)}), frames[1:4])


def test_every_video_of_a_batch_is_shown_without_its_padding() -> None:
    plan = RefineFrames(14, 5)
    videos = torch.rand(2, 29, 2, 2, 3)
    found = shown(videos.flatten(0, 1), refined_latent(plan, 8, batch_size=2))
    assert torch.equal(found, videos[:, plan.front : plan.front + 14].flatten(0, 1))


def test_a_padded_latent_of_another_length_is_refused() -> None:
    """Also where all frames of the video would still be there: which they are is not known any more."""
    for num_frames in range(1, 60):
        plan = RefineFrames(num_frames)
        for num_latents in range(1, 20):
            latent = refined_latent(plan, num_latents)
            frames = torch.zeros(video_frames(num_latents), 1, 1, 3)
            if num_latents == plan.num_latents:
                assert len(shown(frames, latent)) == num_frames
            else:
                said = "cut" if num_latents < plan.num_latents else "lengthened"
                with pytest.raises(ValueError, match=f"was {said} after LongCat Refine Latent"):
                    shown(frames, latent)


def test_padding_is_what_the_latent_says() -> None:
    assert is_padded(refined_latent(RefineFrames(10), 4))
    assert not is_padded(refined_latent(RefineFrames(13), 4))
    assert not is_padded({"samples": torch.zeros(1, 16, 4, 1, 1), SHOWN_FRAMES: ALL_FRAMES})
    assert not is_padded({"samples": torch.zeros(1, 16, 4, 1, 1)})


@pytest.mark.parametrize("size", buckets.BUCKETS[buckets.REFINED])
def test_a_latent_with_the_look_of_a_refined_one_must_say_what_is_padding(size: buckets.Size) -> None:
    samples = torch.zeros(1, 1, 48, *PixelShape(189, *size).latent()[1:])
    with pytest.raises(ValueError, match=f"48 latent frames of {size.width} x {size.height} pixels, but does not say"):
        check_says_what_is_shown({"samples": samples}, "LongCat Decode")
    check_says_what_is_shown({"samples": samples, SHOWN_FRAMES: ALL_FRAMES}, "LongCat Decode")
    check_says_what_is_shown({"samples": samples[:, :, 1:]}, "LongCat Decode")


def test_at_other_sizes_the_log_says_what_may_be_padding(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for num_latents in (3, 4, 5):
        check_says_what_is_shown({"samples": torch.zeros(1, 16, num_latents, 8, 8)}, "LongCat Decode")
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "LongCat Decode: the latent does not say which of its 13 frames are the video"
    )
    assert "up to 15 at the beginning and at the end" in record.getMessage()


def test_no_end_has_more_padding_than_is_said() -> None:
    plans = [RefineFrames(num_frames, given) for num_frames in range(1, 80) for given in range(num_frames)]
    assert max(max(plan.front, plan.back) for plan in plans) == most_padding()
