"""Plans and files of storyboards, and the maths on their condition frames, without any model."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nodes as core_nodes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from longcat_core.frames.comfyui import LATENT_FORMAT
from longcat_core.frames.drift import color_anchored, lightly_noised
from longcat_core.segments.files import METADATA, SegmentFiles, completed
from longcat_core.segments.plan import MAX_SEED, Segment, of_storyboard, prompt_list, prompts_of_segments

SETTINGS: dict[str, Any] = {
    **{"negative": "blurry", "width": 64, "height": 64, "length": 17, "num_cond_frames": 5, "steps": 3, "cfg": 4.0}
}
PROMPTS = ["a cat", "a dog", "a bird", "a fish"]
PLAN = {"mode": "enhance_hf", "seed": 7, "seed_policy": "increment", "continues": False, "settings": SETTINGS}


def random_latent(seed: int, frames: int = 5) -> torch.Tensor:
    return torch.randn(1, 16, frames, 8, 8, generator=torch.Generator().manual_seed(seed))


def fingerprints(prompts: list[str] = PROMPTS, **changes: object) -> list[str]:
    return [segment.fingerprint for segment in of_storyboard(prompts, **(PLAN | changes))]


def common_segments(found: list[str]) -> list[bool]:
    """Which segments of the plan above are also in another plan, in its place."""
    return [one == other for one, other in zip(fingerprints(), found, strict=True)]


def test_prompts_are_lines() -> None:
    assert prompt_list("  a cat \n\n\ta dog\r\n \n\u4e00\u53ea\u732b") == ["a cat", "a dog", "\u4e00\u53ea\u732b"]


@pytest.mark.parametrize("text", ["", " \n\t\n  "])
def test_no_prompt_at_all(text: str) -> None:
    with pytest.raises(ValueError, match=r"prompts is empty\. Write one prompt per line"):
        prompts_of_segments(text, 3)


@pytest.mark.parametrize(
    ("text", "segments", "expected"),
    [
        ("a\nb", 0, ["a", "b"]),
        ("a\nb", 2, ["a", "b"]),
        ("a", 0, ["a"]),
        ("a\n", 3, ["a", "a", "a"]),
    ],
)
def test_one_prompt_per_segment(text: str, segments: int, expected: list[str]) -> None:
    assert prompts_of_segments(text, segments) == expected


@pytest.mark.parametrize("segments", [1, 3])
def test_neither_one_prompt_nor_one_for_each_segment(segments: int) -> None:
    with pytest.raises(ValueError, match=rf"There are 2 prompts \(lines\) for {segments} segments\."):
        prompts_of_segments("a\nb", segments)


def test_seeds_are_counted_up_or_kept() -> None:
    def seeds(**changes: object) -> list[int]:
        return [segment.seed for segment in of_storyboard(PROMPTS, **(PLAN | changes))]

    assert seeds() == [7, 8, 9, 10]
    assert seeds(seed_policy="same") == [7] * 4
    assert seeds(seed=MAX_SEED - 1) == [MAX_SEED - 1, MAX_SEED, 0, 1]


@pytest.mark.parametrize(
    ("mode", "continues", "first", "later"),
    [
        ("enhance_hf", False, "base", "enhance_hf"),
        ("enhance_hf", True, "enhance_hf", "enhance_hf"),
        ("base", True, "base", "base"),
        ("distill", False, "distill", "distill"),
    ],
)
def test_enhance_hf_is_for_continuations(mode: str, continues: bool, first: str, later: str) -> None:
    modes = [segment.mode for segment in of_storyboard(PROMPTS, **(PLAN | {"mode": mode, "continues": continues}))]
    assert modes == [first, later, later, later]


def test_fingerprints_are_stable_and_differ_between_segments() -> None:
    """The literal is what segments on users' disks are called: a change of it abandons them, so raise FILE_VERSION."""
    same_prompt = fingerprints(["a cat"] * 4, seed_policy="same", mode="base")
    assert len(set(same_prompt)) == 4
    assert fingerprints() == fingerprints()
    assert fingerprints()[0][:12] == "7d1e7c8d1e67"


@pytest.mark.parametrize("changed", range(4))
def test_another_prompt_keeps_the_segments_before_it(changed: int) -> None:
    prompts = [*PROMPTS]
    prompts[changed] = "a cow"
    assert common_segments(fingerprints(prompts)) == [index < changed for index in range(4)]


def test_more_segments_keep_those_that_are_there() -> None:
    assert fingerprints([*PROMPTS, "a cow"])[:4] == fingerprints()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_counts_from_the_first_segment_on(name: str) -> None:
    other = "other" if isinstance(SETTINGS[name], str) else SETTINGS[name] + 4
    assert common_segments(fingerprints(settings=SETTINGS | {name: other})) == [False] * 4


def test_what_a_segment_is_made_with_counts_and_nothing_else() -> None:
    assert common_segments(fingerprints(seed=8)) == [False] * 4
    assert common_segments(fingerprints(seed_policy="same")) == [True, False, False, False]
    assert common_segments(fingerprints(mode="base")) == [True, False, False, False]
    assert common_segments(fingerprints(settings=dict(reversed(SETTINGS.items())))) == [True] * 4


@pytest.fixture
def segment() -> Segment:
    return of_storyboard(PROMPTS, **PLAN)[2]


@pytest.fixture
def files(tmp_path: Path) -> SegmentFiles:
    return SegmentFiles(tmp_path, "story")


def test_files_of_a_segment(files: SegmentFiles, segment: Segment) -> None:
    samples = random_latent(0)
    assert files.load_latent(segment) is None
    files.save_latent(segment, samples.transpose(-1, -2))  # not contiguous, as a slice of a batch may be
    assert [path.name for path in files.folder.iterdir()] == [f"story_003_{segment.fingerprint[:12]}.latent"]
    assert files.video(segment) == files.latent(segment).with_suffix(".mp4")
    assert torch.equal(files.load_latent(segment), samples.transpose(-1, -2))
    with safetensors.safe_open(files.latent(segment), framework="pt") as file:
        assert file.metadata() == {METADATA: segment.fingerprint}


def test_cores_load_latent_reads_the_file(
    files: SegmentFiles, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.save_latent(segment, random_latent(0))
    monkeypatch.setattr("folder_paths.get_annotated_filepath", lambda name: str(files.folder / name))
    (loaded,) = core_nodes.LoadLatent().load(files.latent(segment).name)
    assert torch.equal(loaded["samples"], random_latent(0))


def test_renamed_file_of_other_inputs(files: SegmentFiles, segment: Segment) -> None:
    other = of_storyboard(["a cow"], **PLAN)[0]
    files.save_latent(other, random_latent(0))
    files.latent(other).rename(files.latent(segment))
    with pytest.raises(ValueError, match=r"holds a segment of other inputs: it was renamed or copied here\."):
        files.load_latent(segment)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_file_that_was_cut_off(files: SegmentFiles, segment: Segment, kept: int) -> None:
    files.save_latent(segment, random_latent(0))
    path = files.latent(segment)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"is damaged .* Delete it; its segment is then made again") as refusal:
        files.load_latent(segment)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"latent_tensor": torch.zeros(1)}, None),
        ({"latent_tensor": torch.zeros(1)}, {"prompt": "{}"}),
        ({"weight": torch.zeros(1)}, "the segment's"),
    ],
)
def test_file_of_another_program(
    files: SegmentFiles, segment: Segment, tensors: dict, metadata: dict | str | None
) -> None:
    own = {METADATA: segment.fingerprint}
    safetensors.torch.save_file(tensors, files.latent(segment), own if metadata == "the segment's" else metadata)
    with pytest.raises(ValueError, match="is damaged"):
        files.load_latent(segment)


def test_completed_gives_the_name_only_after_success(tmp_path: Path) -> None:
    path = tmp_path / "a.b.latent"
    with completed(path) as temporary:
        assert temporary.suffix == ".latent"
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"

    def fail() -> None:
        with completed(path) as temporary:
            temporary.write_text("half of the sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.b.latent", "first")]


def test_what_a_killed_process_left_is_not_read_and_not_in_the_way(files: SegmentFiles, segment: Segment) -> None:
    with pytest.raises(KeyboardInterrupt), completed(files.latent(segment)) as left:
        raise KeyboardInterrupt
    left.write_text("half of it")
    assert files.load_latent(segment) is None
    files.save_latent(segment, random_latent(0))
    assert torch.equal(files.load_latent(segment), random_latent(0))
    assert left.read_text() == "half of it"


def test_every_write_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    with completed(path) as one, completed(path) as other:
        assert one != other
        assert {one.parent, other.parent} == {tmp_path}
        one.write_text("one")
        other.write_text("other")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.latent", "one")]


def test_latents_have_the_rights_of_any_new_file(files: SegmentFiles, segment: Segment) -> None:
    files.save_latent(segment, random_latent(0))
    other = files.folder / "other"
    other.touch()
    assert files.latent(segment).stat().st_mode == other.stat().st_mode


def test_what_lies_in_place_of_a_latent_is_said(files: SegmentFiles, segment: Segment) -> None:
    path = files.latent(segment)
    said = rf"{path.name} is not a file\. Move it away; its segment is then made again\."
    path.mkdir()
    with pytest.raises(ValueError, match=said):
        files.load_latent(segment)
    path.rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        with pytest.raises(ValueError, match=said):
            files.load_latent(segment)


def test_a_latent_that_may_not_be_read_is_said(
    files: SegmentFiles, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the file of another user; the tests may run as one who may read everything."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    files.save_latent(segment, random_latent(0))
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(
        ValueError, match=r"cannot be read \(.*Permission denied\)\. Allow reading it, or move it away;"
    ):
        files.load_latent(segment)


WRITER = """
import sys
from pathlib import Path

import torch

sys.path[:0] = [{comfyui!r}, {pack!r}]
from longcat_core.segments.files import SegmentFiles
from longcat_core.segments.plan import of_storyboard

(segment,) = of_storyboard(["a cat"], "base", 0, "same", False, {{}})
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range({rounds}):
    files = SegmentFiles(folder, f"round{{number}}")
    files.save_latent(segment, torch.full((1, 16, 16, 32, 32), 0.5))
    assert (files.load_latent(segment) == 0.5).all()
print("done", flush=True)
"""


def test_two_processes_write_one_segment_at_once(tmp_path: Path) -> None:
    """What is there under its name is always whole, from the first moment on, and both processes end well."""
    rounds = 20
    pack = Path(__file__).resolve().parents[2]
    code = WRITER.format(comfyui=os.environ["COMFYUI_PATH"], pack=str(pack), rounds=rounds)
    command = [sys.executable, "-c", code, str(tmp_path), "--cpu"]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    (segment,) = of_storyboard(["a cat"], "base", 0, "same", False, {})
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n", writer.communicate()[1]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        seen = 0
        while any(writer.poll() is None for writer in writers):
            for number in range(rounds):
                found = SegmentFiles(tmp_path, f"round{number}").load_latent(segment)
                assert found is None or (found == 0.5).all()
                seen += found is not None
            time.sleep(0.01)
        assert seen
        assert [(writer.communicate()[0], writer.returncode) for writer in writers] == [("done\n", 0)] * 2
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        SegmentFiles(tmp_path, f"round{number}").latent(segment).name for number in range(rounds)
    )


def anchored_in_numpy(samples: np.ndarray, anchor: np.ndarray, strength: float) -> np.ndarray:
    """Channel by channel: shift and scale to the anchor's mean and standard deviation, mixed with the samples."""
    mixed = np.empty_like(samples)
    for batch, channel in np.ndindex(samples.shape[:2]):
        one, other = samples[batch, channel], anchor[batch, channel]
        moved = (one - one.mean()) * (other.std(ddof=1) / one.std(ddof=1)) + other.mean()
        mixed[batch, channel] = one + strength * (moved - one)
    return mixed


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_color_anchor_against_numpy(strength: float) -> None:
    scale = torch.linspace(0.5, 2, 16).view(1, 16, 1, 1, 1)
    samples, anchor = 1.5 + scale * random_latent(0), random_latent(1, frames=3) / scale - 0.5
    expected = anchored_in_numpy(samples.double().numpy(), anchor.double().numpy(), strength)
    found = color_anchored(samples, anchor, strength)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    if strength == 1:
        for statistic in (torch.mean, torch.std):
            torch.testing.assert_close(statistic(found, (2, 3, 4)), statistic(anchor, (2, 3, 4)), atol=1e-5, rtol=1e-5)


def test_color_anchor_zero_changes_nothing() -> None:
    assert torch.equal(color_anchored(random_latent(0), random_latent(1), 0.0), random_latent(0))


def test_color_anchor_of_a_flat_channel_is_finite() -> None:
    samples = random_latent(0)
    samples[:, 3] = 0.7
    found = color_anchored(samples, random_latent(1), 1.0)
    torch.testing.assert_close(found[:, 3], random_latent(1)[:, 3].mean().expand(1, 5, 8, 8))


def as_the_model_sees(latent: torch.Tensor) -> np.ndarray:
    """Normalised with the Wan VAE's statistics, in float64."""
    mean, std = (x.double().numpy() for x in (LATENT_FORMAT.latents_mean, LATENT_FORMAT.latents_std))
    return (latent.double().numpy() - mean) / std


def test_condition_noise_against_numpy() -> None:
    """What is left after the clean share is unit noise; the same seed gives the same, and not the video's own noise."""
    clean = LATENT_FORMAT.process_out(random_latent(0))
    noises = []
    for sigma in (0.05, 0.5):
        noised = lightly_noised(clean, sigma, seed=7)
        noises.append((as_the_model_sees(noised) - (1 - sigma) * as_the_model_sees(clean)) / sigma)
        assert torch.equal(noised, lightly_noised(clean, sigma, seed=7))
    np.testing.assert_allclose(noises[0], noises[1], atol=1e-4)
    assert noises[0].std() == pytest.approx(1, abs=0.03)
    assert noises[0].mean() == pytest.approx(0, abs=0.05)
    own_noise = random_latent(7).double().numpy()  # what ComfyUI draws for seed 7
    for other in (own_noise, as_the_model_sees(clean)):
        assert abs(np.corrcoef(noises[0].ravel(), other.ravel())[0, 1]) < 0.05
    assert not torch.equal(lightly_noised(clean, 0.05, seed=8), lightly_noised(clean, 0.05, seed=7))


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_condition_noise_takes_every_seed(seed: int) -> None:
    assert torch.isfinite(lightly_noised(random_latent(0), 0.05, seed)).all()
