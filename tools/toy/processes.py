"""Train the toy model: a small LongCat-Video that really learned to draw moving shapes, for demonstrations and tests.

    python3 scripts/train_toy.py [DEST] [--work DIR] [--speed-up N]

Writes a folder in the released layout (dit/, scheduler/, text_encoder/, tokenizer/, vae/) with weights in bf16. It
takes about four hours on two CPU cores. Stopped at any time, the same command goes on from the last checkpoint, at
most a minute back. docs/toy.md explains the recipe; toy_training.py is the recipe.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # an embedded Python does not do it
from host import PACK, HostError, cache_root, ensure_host, host_environment, run_command, run_in_host

TOY = PACK / "assets" / "toy"
COMPONENTS = {"dit", "scheduler", "text_encoder", "tokenizer", "vae"}
PREPARE, EXPORT = "prepare", "export"
PARTS = (("encoder", "decoder"), ("dit",))  # what trains one after the other, in processes side by side
# Two processes of one thread do more than one of two; glibc keeps freed memory instead of returning it.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "300000000",
}


def main() -> int:
    """Set up the host, then run this file again under its Python, once for each process."""
    options = _options()
    if options.hosted:
        return _run_parts(options)
    host = ensure_host(packages=["diffusers"])
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.update(ENVIRONMENT)
    command = [__file__, *sys.argv[1:], "--hosted"]
    if run_in_host(host, [*command, PREPARE]):
        raise HostError("Preparing the training failed; the reason is above.")
    _train_side_by_side([[host.python, *command, *parts] for parts in PARTS], str(host.comfyui))
    return run_in_host(host, [*command, EXPORT])


def _train_side_by_side(commands: list[list[str | Path]], comfyui: str) -> None:
    environment = {**host_environment(), "COMFYUI_PATH": comfyui}
    running = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        while None in (statuses := [process.poll() for process in running]) and not any(statuses):
            time.sleep(1)
    finally:
        for process in running:
            process.terminate()
            process.wait()
    if any(statuses):
        raise HostError("The training stopped; the reason is above. The same command continues it.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", nargs="?", type=Path, metavar="DEST", help="folder to write (default: assets/toy)")
    parser.add_argument("--work", type=Path, default=cache_root() / "toy", metavar="DIR", help="checkpoints and logs")
    parser.add_argument(
        "--speed-up",
        type=int,
        default=1,
        metavar="N",
        help="train N times shorter, to try it out; DEST is then in DIR unless given",
    )
    parser.add_argument("--hosted", nargs="+", help=argparse.SUPPRESS)
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


def _run_parts(options: argparse.Namespace) -> int:
    from make_tiny_model import use_comfyui

    use_comfyui()
    import comfy.model_management
    import torch
    from toy_folder import export, prepare
    from toy_training import ROUNDS, train

    torch.set_num_threads(1)
    comfy.model_management.in_training = True  # core's rotary kernel has no gradient, its plain formula has
    for part in options.hosted:
        if part == PREPARE:
            prepare(options.work)
        elif part == EXPORT:
            export(options.work, options.dest)
        else:
            rounds = [full._replace(steps=max(1, full.steps // options.speed_up)) for full in ROUNDS[part]]
            train(part, options.work, rounds)
    return 0


if __name__ == "__main__":
    run_command(main)
