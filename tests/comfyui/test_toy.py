"""Do the videos mean what the prompts say? The toy model through the real server, read off the saved .mp4 files.

All prompts are combinations that the toy was not trained on. The reading code is checked on drawn clips first.
"""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest
import torch
from host.videos import write_video
from PIL import Image
from test_shipped_workflows import find, saved_video
from toy.clips import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    MOTIONS,
    SIZE,
    SUBJECTS,
    TRAINED,
    Clips,
    Subject,
    draw,
    random_clips,
    subject_of,
    unknown_words,
)
from toy.modes import MODES
from toy.reader import Reading, psnr, read
from toy.workflows import given_frames, toy_workflow

Prompt = dict[str, dict]

STEPS = 12
CFG = 4.0  # for the cache, which keeps what both the prompt and the empty one see
NUM_PROMPTS = 64
NUM_GIVEN = 24  # pictures and videos to go on from
NUM_CACHED = 4  # videos made with and without the KV cache
NUM_LONG = 4
MOVING = tuple(subject for subject in HELD_OUT if subject.motion != "standing still")
AT_SEAM, NEAR_SEAM = 4, 8  # new frames: those of one latent for the place, of two for the velocity
PLACE_TOLERANCE = 1.5  # pixels
VELOCITY_TOLERANCE = 0.5  # pixels per frame; at 1 pixel per frame, standing still is 1.0 off and a right angle 1.4
CHANCE = {"color": 1 / len(COLORS), "background": 1 / len(BACKGROUNDS), "motion": 1 / len(MOTIONS), "shape": 1 / 3}
THRESHOLDS = {"color": 0.95, "background": 0.95, "motion": 0.90, "shape": 0.80}


def pixels(clips: Clips) -> np.ndarray:
    """Drawn clips as uint8 `[B, T, height, width, 3]`."""
    return ((draw(clips) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def agreement(readings: Sequence[Reading], subjects: Sequence[Subject]) -> dict[str, float]:
    """Share of the videos that show what they should, by word of the prompt."""
    pairs = list(zip(readings, subjects, strict=True))
    return {
        word: float(np.mean([getattr(seen, word) == getattr(meant, word) for seen, meant in pairs]))
        for word in THRESHOLDS
    }


def prompt_of(mode: str, subject: Subject, seed: int) -> Prompt:
    """A shipped workflow for the toy."""
    return toy_workflow(MODES[mode].workflow, [subject.prompt], MODES[mode].length, STEPS, seed)


def made(server: Any, prompt: Prompt) -> np.ndarray:
    """Run a prompt; the frames of the video that it saves, uint8 `[T, height, width, 3]`."""
    frames, _ = saved_video(server, prompt, server.run(prompt))
    return frames


@pytest.fixture(scope="module")
def table(report: list[str]) -> Callable[..., None]:
    """Print lines of the table of what the toy's videos mean, then check them."""
    report.append(f"{'toy model, through the server':<44} {'needed':>9} {'measured':>9} {'n':>4}")

    def check(n: int, rows: dict[str, tuple[float, float]]) -> None:
        for metric, (needed, measured) in rows.items():
            report.append(f"{metric:<44} {needed:>9.2f} {measured:>9.2f} {n:>4}")
        assert [metric for metric, (needed, measured) in rows.items() if measured < needed] == []

    return check


def test_unknown_words_are_told_from_known_ones() -> None:
    assert unknown_words(SUBJECTS[0].prompt) == []
    assert unknown_words("a red hexagon moving right on a beige background") == ["hexagon", "beige"]
    assert subject_of("a blue hexagon moving up on a beige background") == Subject(
        "blue", "circle", "moving up", "white"
    )
    assert subject_of("moving left: a green square, not a red one") == Subject(
        "green", "square", "moving left", "white"
    )


@pytest.mark.parametrize("num_frames", [17, 33, 93])
def test_the_reader_reads_drawn_clips(num_frames: int) -> None:
    subjects = SUBJECTS[:: num_frames // 8]
    clips = pixels(random_clips(subjects, num_frames, torch.Generator().manual_seed(1)))
    assert agreement([read(clip) for clip in clips], subjects) == dict.fromkeys(THRESHOLDS, 1.0)


def test_the_reader_bears_noise() -> None:
    clips = pixels(random_clips(HELD_OUT, 17, torch.Generator().manual_seed(2)))
    noise = np.random.default_rng(0).normal(0, 10, clips.shape)
    noisy = np.clip(clips + noise, 0, 255).astype(np.uint8)
    assert min(agreement([read(clip) for clip in noisy], HELD_OUT).values()) >= 0.95


def test_the_reader_sees_nothing_in_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (len(HELD_OUT), 5, SIZE, SIZE, 3), dtype=np.uint8)
    found = agreement([read(clip) for clip in noise], HELD_OUT)
    assert all(found[word] < chance + 0.25 for word, chance in CHANCE.items()), found


def test_nothing_held_out_is_trained_on() -> None:
    assert not set(HELD_OUT) & set(TRAINED)
    for index in range(4):
        assert {subject[index] for subject in TRAINED} == {subject[index] for subject in SUBJECTS}
        assert {subject[index] for subject in HELD_OUT} == {subject[index] for subject in SUBJECTS}


def test_text_to_video(server: Any, table: Callable) -> None:
    subjects = list(islice(cycle(HELD_OUT), NUM_PROMPTS))
    readings = [read(made(server, prompt_of("t2v", subject, seed))) for seed, subject in enumerate(subjects)]
    found = agreement(readings, subjects)
    rows = {f"text to video: {word}": (needed, found[word]) for word, needed in THRESHOLDS.items()}
    table(NUM_PROMPTS, rows)


def test_image_to_video(server: Any, table: Callable) -> None:
    subjects = HELD_OUT[:NUM_GIVEN]
    images = pixels(random_clips(subjects, 1, torch.Generator().manual_seed(3)))[:, 0]
    readings, ratios = [], []
    for seed, (subject, image) in enumerate(zip(subjects, images, strict=True)):
        prompt = prompt_of("i2v", subject, seed)
        name = prompt[find(prompt, "LoadImage")]["inputs"]["image"] = f"toy_{seed}.png"
        Image.fromarray(image).save(server.base_directory / "input" / name)
        frames = made(server, prompt)
        readings.append(read(frames))
        ratios.append(psnr(frames[0], image))
    rows = {
        "image to video: PSNR of the first frame, dB": (25.0, min(ratios)),
        "image to video: motion": (THRESHOLDS["motion"], agreement(readings, subjects)["motion"]),
    }
    table(NUM_GIVEN, rows)


def given_video(server: Any, prompt: Prompt, subject: Subject, seed: int) -> np.ndarray:
    """Draw the video that a prompt continues, with room to go on, and hand it to the server."""
    frames = given_frames(subject.prompt, seed)
    name = prompt[find(prompt, "LoadVideo")]["inputs"]["file"] = f"toy_{seed}.mp4"
    write_video(frames, server.base_directory / "input" / name)
    return frames


def seam_error(given: np.ndarray, joined: np.ndarray) -> tuple[float, float]:
    """How far place (pixels) and velocity (pixels per frame) behind the seam are from those of the given video."""
    before, centroids = read(given).centroids, read(joined).centroids
    assert np.abs(centroids[: len(before)] - before).max() < 1
    velocity = (before[-1] - before[0]) / (len(before) - 1)
    after = centroids[len(before) : len(before) + NEAR_SEAM]
    expected = before[-1] + velocity * np.arange(1, NEAR_SEAM + 1)[:, None]
    place = np.linalg.norm(after - expected, axis=1)[:AT_SEAM].max()
    speed = np.linalg.norm((after[-1] - after[0]) / (NEAR_SEAM - 1) - velocity)
    return float(np.nan_to_num(place, nan=SIZE)), float(np.nan_to_num(speed, nan=SIZE))


def test_continuation(server: Any, table: Callable, report: list[str]) -> None:
    subjects = MOVING[:NUM_GIVEN]
    errors = []
    for seed, subject in enumerate(subjects):
        prompt = prompt_of("continue", subject, seed)
        given = given_video(server, prompt, subject, seed)
        errors.append(seam_error(given, made(server, prompt)))
    places, speeds = np.array(errors).T
    rows = {
        f"continuation: place within {PLACE_TOLERANCE} pixels": (0.9, np.mean(places <= PLACE_TOLERANCE)),
        f"continuation: velocity within {VELOCITY_TOLERANCE} a frame": (0.9, np.mean(speeds <= VELOCITY_TOLERANCE)),
    }
    report.append(
        f"continuation, median: {np.median(places):.2f} pixels off the extrapolated path in {AT_SEAM} frames behind "
        f"the seam, {np.median(speeds):.3f} pixels per frame off its velocity in {NEAR_SEAM}"
    )
    table(NUM_GIVEN, rows)


def test_the_cache_makes_the_same_video(server: Any, table: Callable) -> None:
    ratios = []
    for seed, subject in enumerate(MOVING[:NUM_CACHED]):
        prompt = prompt_of("continue", subject, seed)
        given_video(server, prompt, subject, seed)
        prompt[find(prompt, "LongCatSampler")]["inputs"]["cfg"] = CFG
        cached = made(server, prompt)
        loader = prompt[find(prompt, "LongCatKVCache")]["inputs"]["model"]
        prompt[find(prompt, "LongCatSampler")]["inputs"]["model"] = loader
        ratios.append(psnr(cached, made(server, prompt)))
    table(NUM_CACHED, {"KV cache on and off: PSNR of the video, dB": (35.0, min(ratios))})


def test_a_video_of_six_seconds(server: Any, table: Callable, report: list[str]) -> None:
    """The trained length of the real model; the shape stays in view."""
    subjects = HELD_OUT[:NUM_LONG]
    readings = []
    for seed, subject in enumerate(subjects):
        prompt = prompt_of("t2v", subject, seed)
        prompt[find(prompt, "LongCatLatent")]["inputs"]["length"] = 93
        frames = made(server, prompt)
        assert len(frames) == 93
        readings.append(read(frames))
    found = agreement(readings, subjects)
    views = [float(np.mean(~np.isnan(reading.centroids[:, 0]))) for reading in readings]
    report.append(f"93 frames: shape {found['shape']:.2f}, motion {found['motion']:.2f} ({NUM_LONG} videos)")
    rows = {f"93 frames: {word}": (THRESHOLDS[word], found[word]) for word in ("color", "background")}
    table(NUM_LONG, rows | {"93 frames: share with the shape in view": (0.95, min(views))})
