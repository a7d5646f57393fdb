"""Run every shipped workflow on the toy model and put frames of its video into its thumbnail, `workflows/<name>.jpg`.

python3 scripts/make_thumbnails.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # an embedded Python does not do it
from demo import DIRECTIONS
from host import PACK, Host, ensure_host, run_command, run_in_host

HOSTED = "--hosted"

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


def main() -> int:
    """Set up, and run this file again under the host's Python."""
    if sys.argv[1:] != [HOSTED]:
        return run_in_host(ensure_host(), [__file__, HOSTED])
    make_all()
    return 0


def make_all() -> None:
    """Run every workflow in one server."""
    from comfyui_server import outputs, running_server
    from toy_workflows import install_toy, toy_workflow, write_given_files
    from videos import saved_file

    host = Host(comfyui=Path(os.environ["COMFYUI_PATH"]), python=Path(sys.executable))
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        install_toy(base / "models")
        with running_server(host, base, PACK) as client:
            for workflow, (length, prompts) in PROMPTS.items():
                graph = toy_workflow(workflow, prompts, length, STEPS, SEED)
                write_given_files(base / "input", graph, prompts[0])
                file = saved_file(graph, outputs(client.run(graph)))
                video = base / "output" / file["subfolder"] / file["filename"]
                write_thumbnail(video, PACK / "workflows" / f"{workflow}.jpg")


def write_thumbnail(video: Path, path: Path) -> None:
    """Write the first, middle and last frame side by side."""
    from PIL import Image
    from videos import read_video, spread

    frames, _ = read_video(str(video))
    picture = Image.new("RGB", THUMBNAIL, PAPER)
    gap = (THUMBNAIL[0] - FRAMES * FRAME_SIZE) // (FRAMES + 1)
    for index, frame in enumerate(spread(frames, FRAMES)):
        place = (gap + index * (FRAME_SIZE + gap), (THUMBNAIL[1] - FRAME_SIZE) // 2)
        enlarged = Image.fromarray(frame).resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC)
        picture.paste(enlarged, place)
    picture.save(path, quality=90)


if __name__ == "__main__":
    run_command(main)
