"""Which checks notice which mistake? Every breakage must be caught, by what the toy's videos mean or by a golden.

Videos are made in batches in this process; the goldens are those of tests/parity, each group until its first failure.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import test_goldens
import torch
from breakages import BREAKAGES, Breakage
from goldens import Case, cases
from inprocess import node
from test_toy import THRESHOLDS, agreement
from toy.clips import HELD_OUT, draw, random_clips
from toy.reader import Reading, read

from longcat_core.frames.geometry import LatentShape
from longcat_core.frames.waiting import with_condition

CHOSEN = HELD_OUT[:8]
FRAMES, STEPS, CFG, SEED = 17, 8, 4.0, 0


def fp32(selected: list[Case]) -> list[Case]:
    return [case for case in selected if case.dtype == torch.float32]


def check_network(case: Case) -> None:
    test_goldens.test_network(case, "disable_weight_init", {})


GOLDENS: dict[str, tuple[Callable[[Case], None], list[Case]]] = {
    "network": (check_network, fp32(test_goldens.NETWORK_CASES)),
    "schedule": (test_goldens.test_schedule, cases("samplers", ("schedule",))),
    "rope": (lambda case: test_goldens.test_rope(case, {}), cases("rope_3d", ("rope",))),
    "loop": (lambda case: test_goldens.test_loop_through_comfyui(case, {}), fp32(cases("loops"))),
    "guidance": (
        lambda case: test_goldens.test_loop_with_stand_in_network(case, {}),
        [case for case in fp32(cases("samplers", ("sampler",))) if case.args["loop"] != "refine"],
    ),
}


def failed_goldens() -> Iterator[str]:
    """Names of the groups that have a failing case."""
    for name, (check, selected) in GOLDENS.items():
        assert selected, name
        try:
            for case in selected:
                check(case)
        except AssertionError:
            yield name


@pytest.fixture(scope="module")
def toy(toy_model: Any) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE."""
    return node("LongCatLoader")(toy_model.name)


@pytest.fixture(scope="module")
def conditioning(toy: tuple[Any, Any, Any]) -> tuple[list, list]:
    """All prompts as one positive conditioning, and the empty one as often."""

    def encoded(texts: list[str]) -> list:
        encodings = [node("LongCatTextEncode")(toy[1], text)[0][0][0] for text in texts]
        return [[torch.cat(encodings), {}]]

    return encoded([subject.prompt for subject in CHOSEN]), encoded([""] * len(CHOSEN))


@pytest.fixture(scope="module")
@torch.inference_mode()
def given(toy: tuple[Any, Any, Any]) -> torch.Tensor:
    """First frames of drawn clips, encoded, `[B, 16, 1, 8, 8]`."""
    pixels = draw(random_clips(CHOSEN, 1, torch.Generator().manual_seed(SEED)))
    return torch.cat([toy[2].encode((frames.permute(1, 2, 3, 0) + 1) / 2) for frames in pixels])


@torch.inference_mode()
def make_videos(toy: tuple[Any, Any, Any], conditioning: tuple[list, list], given: torch.Tensor) -> list[Reading]:
    """One video per subject, behind the `given` latents, read."""
    (latent,) = node("LongCatLatent")(64, 64, FRAMES, len(CHOSEN))
    if given.shape[2]:
        latent = with_condition(given, LatentShape(*latent["samples"].shape[2:]))
    (sampled,) = node("LongCatSampler")(toy[0], *conditioning, latent, SEED, STEPS, CFG, "base")
    samples = torch.nan_to_num(sampled["samples"])
    videos = [toy[2].decode(one) for one in samples.split(1)]
    return [read(np.uint8((video.reshape(-1, 64, 64, 3) * 255).round().clamp(0, 255))) for video in videos]


@pytest.fixture(scope="module")
def shown(toy: Any, conditioning: Any, given: torch.Tensor) -> Callable[[int], dict[str, float]]:
    """What videos behind some condition latents show."""

    def measure(num_cond_latents: int) -> dict[str, float]:
        return agreement(make_videos(toy, conditioning, given[:, :, :num_cond_latents]), CHOSEN)

    return measure


def line(name: str, found: dict[str, float], goldens: list[str]) -> str:
    """A line of the table; what is below its threshold is marked."""
    metrics = "".join(f"{value:>9.2f}{'!' if value < THRESHOLDS[word] else ' '}" for word, value in found.items())
    return f"{name:<38}{metrics}  {', '.join(goldens)}"


@pytest.fixture(scope="module", autouse=True)
def heading(report: list[str]) -> None:
    words = "".join(f"{word:>10}" for word in THRESHOLDS)
    report.append(f"{f'breakage ({len(CHOSEN)} videos; ! is noticed)':<38}{words}  goldens that fail")


def test_nothing_broken(shown: Callable, report: list[str]) -> None:
    found, goldens = {count: shown(count) for count in (0, 1)}, list(failed_goldens())
    for count, words in found.items():
        report.append(line(f"none, {count} condition frames", words, goldens))
    assert not goldens
    for words in found.values():
        assert [word for word, needed in THRESHOLDS.items() if words[word] < needed] == []


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_is_caught(breakage: Breakage, shown: Callable, report: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    breakage.apply(monkeypatch)
    found, goldens = shown(breakage.num_cond_latents), list(failed_goldens())
    report.append(line(breakage.name, found, goldens))
    assert goldens or any(found[word] < needed for word, needed in THRESHOLDS.items())
