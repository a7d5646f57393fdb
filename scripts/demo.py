"""Make a video with the pack in a real, headless ComfyUI, from nothing but a clone of this repository.

    python3 scripts/demo.py ["a red circle moving right on a white background"] [--mode t2v|i2v|continue|storyboard]

The model is the toy in assets/toy: a small LongCat-Video that learned to draw one moving shape. In mode i2v it is given
a picture, in mode continue a short video, both drawn here; in mode storyboard every prompt makes a segment.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from host.arguments import at_least, port, video_length
from host.command import hosted, run_command
from host.output import check_writable, opener
from host.process import PACK, HostError
from toy.modes import MODES

TOY = PACK / "assets" / "toy"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompt", nargs="*", help="what the video should show; mode storyboard takes several")
    add("--mode", choices=MODES, default="t2v", help="what to make (default: %(default)s)")
    add("--length", type=video_length, help="frames (of a segment), a multiple of 4 plus 1 (default: 17 or 33)")
    add("--steps", type=at_least(1), default=30, help="sampling steps (default: %(default)s)")
    add("--seed", type=at_least(0), default=0, help="seed of the noise (default: %(default)s)")
    add("--output", type=Path, default=PACK / "output", metavar="DIR", help="default: output/")
    add("--port", type=port, help="of the server, 1 to 65535 (default: a free one)")
    add("--open", action="store_true", help="show the video when it is done")
    options = parser.parse_args()
    if not all(map(str.strip, options.prompt)):
        parser.error("a prompt is empty: say what the video should show, or give no prompt to see the default.")
    if len(options.prompt) > 1 and options.mode != "storyboard":
        parser.error(f"{len(options.prompt)} prompts: --mode {options.mode} takes one; put it in quotation marks.")
    return options


def _check(options: argparse.Namespace) -> tuple[str, ...]:
    check_writable(options.output)
    if options.open:
        opener()
    if not TOY.is_dir():
        raise HostError(f"The toy model is missing ({TOY}): clone the repository, packages do not contain it.")
    return ()


def _demonstrate(options: argparse.Namespace) -> int:
    from toy.demo import demonstrate

    return demonstrate(options)


if __name__ == "__main__":
    run_command(lambda: hosted(_options, _demonstrate, before=_check))
