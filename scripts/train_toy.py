"""Train the toy model: a small LongCat-Video that really learned to draw moving shapes, for demonstrations and tests.

    python3 scripts/train_toy.py [DEST] [--work DIR] [--speed-up N]

Writes a folder in the released layout (dit/, scheduler/, text_encoder/, tokenizer/, vae/) with weights in bf16. It
takes about four hours on two CPU cores. Stopped at any time, the same command goes on from the last checkpoint, at
most a minute back. docs/toy.md explains the recipe; tools/toy/tasks.py is the recipe.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from host.command import HOSTED, hosted, run_command
from host.imports import use_comfyui
from host.process import PACK
from host.setup import cache_root
from toy.processes import train_all

TOY = PACK / "assets" / "toy"
COMPONENTS = {"dit", "scheduler", "text_encoder", "tokenizer", "vae"}
PARTS = "--parts"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("dest", nargs="?", type=Path, metavar="DEST", help="folder to write (default: assets/toy)")
    add("--work", type=Path, default=cache_root() / "toy", metavar="DIR", help="checkpoints and logs")
    shorter = "train N times shorter, to try it out; DEST is then in DIR unless given"
    add("--speed-up", type=int, default=1, metavar="N", help=shorter)
    add(PARTS, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.speed_up < 1:
        parser.error(f"--speed-up is {options.speed_up}: it must be 1 or more.")
    if options.speed_up > 1:
        options.work /= f"speed-up-{options.speed_up}"
    options.dest = options.dest or (TOY if options.speed_up == 1 else options.work / TOY.name)
    for folder in (options.dest, options.work):
        if folder.exists() and not folder.is_dir():
            parser.error(f"{folder} is a file: name a folder.")
    if options.dest.exists() and {path.name for path in options.dest.iterdir()} - COMPONENTS:
        parser.error(f"{options.dest} exists and is not a model folder: name one that does not exist yet.")
    return options


def _train(options: argparse.Namespace) -> int:
    if not options.parts:
        return train_all([sys.argv[0], HOSTED, *sys.argv[1:], PARTS], options.work)
    use_comfyui()
    from toy.parts import train_parts

    train_parts(options.parts, options.work, options.dest, options.speed_up)
    return 0


if __name__ == "__main__":
    run_command(lambda: hosted(_options, _train, before=lambda _: ["diffusers"]))
