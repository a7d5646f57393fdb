"""The demo as a newcomer runs it: one video, and wrong inputs of every kind."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from graphs import PACK
from host.videos import read_video
from PIL import Image
from toy.reader import read


def demo(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run `scripts/demo.py` with this ComfyUI."""
    command = [sys.executable, str(PACK / "scripts" / "demo.py"), *map(str, arguments)]
    named = {"COMFYUI_PYTHON": sys.executable, "XDG_CACHE_HOME": str(cache), "LOCALAPPDATA": str(cache)}
    return subprocess.run(command, env={**os.environ, **named}, capture_output=True, text=True, check=False)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_the_video_shows_the_prompt(tmp_path: Path) -> None:
    """Capitals and punctuation do not matter."""
    ran = demo("A blue square, moving up on a pink background.", "--output", tmp_path / "new", cache=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "SamplerCustomAdvanced 30/30" in ran.stdout
    assert "It does not know" not in ran.stdout
    (video,) = (tmp_path / "new").rglob("*.mp4")
    assert f"Saved {video}: 64x64, 17 frames, 15 fps." in ran.stdout
    frames, _ = read_video(str(video))
    seen = read(frames)
    assert (seen.color, seen.motion, seen.background) == ("blue", "moving up", "pink")
    with Image.open(video.with_suffix(".png")) as sheet:
        assert sheet.size == (6 * 132 + 4, 2 * 132 + 4)


@pytest.mark.parametrize(
    ("mode", "num_frames", "motions"),
    [
        ("i2v", 17, {(0, 17): "moving right"}),
        ("continue", 33, {(0, 33): "moving right"}),
        ("storyboard", 53, {(0, 17): "moving right", (29, 41): "moving left", (41, 53): "moving up"}),
    ],
)
def test_every_mode_moves_as_it_should(
    mode: str, num_frames: int, motions: dict[tuple[int, int], str], tmp_path: Path
) -> None:
    """Where there is room: the second segment of the storyboard, moving down, starts near the edge."""
    ran = demo("--mode", mode, "--steps", "16", "--output", tmp_path, cache=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (video,) = (tmp_path / "video").glob("*.mp4")
    frames, _ = read_video(str(video))
    assert len(frames) == num_frames
    assert {part: read(frames[slice(*part)]).motion for part in motions} == motions
    seen = read(frames)
    assert (seen.color, seen.background) == ("red", "white")


def test_an_unknown_word_is_named_and_the_video_made(tmp_path: Path) -> None:
    ran = demo("a blue hexagon moving up", "--steps", "2", "--output", tmp_path, cache=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "It does not know: hexagon. Its words are: a, background, black, blue" in ran.stdout
    assert list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "video"], "invalid choice: 'video' (choose from"),
        (["--port", "99999"], "99999 is no port; use 1 to 65535"),
        (["a red circle", "a blue square"], "2 prompts: --mode t2v takes one"),
        (["--port", "abc"], "abc is no port"),
        (["--length", "18"], "18 is not a multiple of 4 plus 1; use 17 or 21"),
        (["--steps", "0"], "0 is not a whole number of 1 or more"),
        (["--seed", "-1"], "-1 is not a whole number of 0 or more"),
        ([" "], "a prompt is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_a_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    ran = demo(*arguments, "--output", tmp_path, cache=tmp_path)
    assert ran.returncode != 0
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_taken_port_is_a_sentence(taken_port: int, tmp_path: Path) -> None:
    ran = demo("--port", str(taken_port), "--output", tmp_path, cache=tmp_path)
    assert ran.returncode == 1
    assert f"Port {taken_port} cannot be used" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_output_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = demo("--output", tmp_path / "file", cache=tmp_path)
    assert ran.returncode == 1
    assert f"The video cannot be written to {tmp_path / 'file'}: it is a file, not a folder" in ran.stderr
    assert "Name another folder with --output" in ran.stderr
