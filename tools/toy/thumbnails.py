"""The thumbnails of the shipped workflows, which show what each of them makes of the toy model."""

import tempfile
from pathlib import Path

from host.client import outputs
from host.process import PACK, this_host
from host.server import running_server
from host.videos import read_video, saved_file, spread
from PIL import Image

from toy.modes import DIRECTIONS
from toy.workflows import install_toy, toy_workflow, write_given_files

STEPS, SEED = 30, 0
THUMBNAIL = (480, 270)
FRAMES, FRAME_SIZE = 3, 144  # side by side, in pixels
PAPER = (236, 236, 240)
STORY = "a purple triangle moving {} on a white background"
PROMPTS = {
    "longcat_t2v": (17, ("a red circle moving right on a white background",)),
    "longcat_t2v_ksampler": (17, ("a blue square moving up on a pink background",)),
    "longcat_i2v": (17, ("a green triangle moving left on a black background",)),
    "longcat_continuation": (33, ("a yellow circle moving down on a gray background",)),
    "longcat_extend": (33, tuple(f"a cyan square moving {way} on a gray background" for way in ("right", "up"))),
    "longcat_long": (17, ("a red square moving right on a black background",)),
    "longcat_interactive": (17, tuple(STORY.format(way) for way in DIRECTIONS)),
    "longcat_t2v_refine": (17, ("a purple square moving right on a white background",)),
    "longcat_distill_refine": (17, ("a green triangle moving up on a pink background",)),
    "longcat_refine_video": (17, ("a blue circle moving up on a gray background",)),
    "longcat_long_refine": (17, ("a yellow triangle moving right on a gray background",)),
}


def make_all() -> None:
    """Run every workflow in one server."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        install_toy(base / "models")
        with running_server(this_host(), base, PACK) as client:
            for workflow, (length, prompts) in PROMPTS.items():
                graph = toy_workflow(workflow, prompts, length, STEPS, SEED)
                write_given_files(base / "input", graph, prompts[0])
                file = saved_file(graph, outputs(client.run(graph)))
                video = base / "output" / file["subfolder"] / file["filename"]
                write_thumbnail(video, PACK / "workflows" / f"{workflow}.jpg")


def write_thumbnail(video: Path, path: Path) -> None:
    """Write the first, middle and last frame side by side."""
    frames, _ = read_video(str(video))
    picture = Image.new("RGB", THUMBNAIL, PAPER)
    gap = (THUMBNAIL[0] - FRAMES * FRAME_SIZE) // (FRAMES + 1)
    for index, frame in enumerate(spread(frames, FRAMES)):
        place = (gap + index * (FRAME_SIZE + gap), (THUMBNAIL[1] - FRAME_SIZE) // 2)
        enlarged = Image.fromarray(frame).resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC)
        picture.paste(enlarged, place)
    picture.save(path, quality=90)
