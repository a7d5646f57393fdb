"""Make a video with the pack in a real, headless ComfyUI, from nothing but a clone of this repository.

The model is a tiny one with random weights in the layout of the released folder: everything runs as with the real one,
but the picture means nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # an embedded Python does not do it
from host import PACK, Host, HostError, cache_root, ensure_host, run_command, run_in_host

if TYPE_CHECKING:
    from comfyui_server import Event

WORKFLOW = PACK / "workflows" / "api" / "longcat_t2v.json"
MODEL = "tiny-random"


def main() -> int:
    """Set up, and run this file again under the host's Python, which has what the second half imports."""
    options = _options()
    if options.hosted:
        return _demonstrate(options)
    host = ensure_host(packages=["diffusers"])  # writes the tiny model
    models = base_directory() / "models" / "longcat"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / MODEL).exists():
        print("Writing a tiny model with random weights (10 to 30 s, once) ...", flush=True)
    if run_in_host(host, [PACK / "scripts" / "make_tiny_model.py", models / MODEL]):
        raise HostError("The tiny model could not be written; the reason is above.")
    return run_in_host(host, [__file__, "--hosted", *sys.argv[1:]])


def base_directory() -> Path:
    """ComfyUI's files for the demo of this clone: another clone's server must not find its own pack replaced."""
    return cache_root() / "demo" / hashlib.sha256(str(PACK).encode()).hexdigest()[:16]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("prompt", nargs="?", help="what the video should show (default: the workflow's own text)")
    parser.add_argument("--width", type=int, default=64, help="pixels, a multiple of 16 (default: %(default)s)")
    parser.add_argument("--height", type=int, default=64, help="pixels, a multiple of 16 (default: %(default)s)")
    parser.add_argument("--length", type=int, default=17, help="frames, a multiple of 4 plus 1 (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=15.0, help="frames per second (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=PACK / "output", metavar="DIR", help="default: output/")
    parser.add_argument("--open", action="store_true", help="show the video when it is done")
    parser.add_argument("--hosted", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def fill_in(workflow: dict[str, Any], options: argparse.Namespace) -> None:
    """Put the options into an API-format workflow, in place."""
    inputs: dict[str, dict[str, Any]] = {
        "LongCatLoader": {"folder": MODEL},
        "LongCatLatent": {"width": options.width, "height": options.height, "length": options.length},
        "LongCatSigmas": {"steps": options.steps},
        "RandomNoise": {"noise_seed": options.seed},
        "CreateVideo": {"fps": options.fps},
        "SaveVideo": {"filename_prefix": "longcat-demo"},
    }
    for node in workflow.values():
        node["inputs"].update(inputs.get(node["class_type"], {}))
        if options.prompt and node["_meta"]["title"] == "Positive prompt":
            node["inputs"]["text"] = options.prompt


def _demonstrate(options: argparse.Namespace) -> int:
    from comfyui_server import ExecutionFailed, PromptRejected, ServerError

    folder = options.output.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"The folder --output {folder} cannot be made: {error.strerror}.") from error
    try:
        video = _make_video(options, folder)
    except (ServerError, PromptRejected, ExecutionFailed) as error:
        raise HostError(str(error)) from error
    print(
        f"Saved {video}: {_properties(video)}.\n"
        "The demo model has random weights, so the picture means nothing yet; it shows that everything runs.\n"
        'For real videos get the real model: see "Model files" in README.md.'
    )
    if options.open:
        _show(video)
    return 0


def _make_video(options: argparse.Namespace, folder: Path) -> Path:
    from comfyui_server import LOG_NAME, outputs, running_server

    host = Host(comfyui=Path(os.environ["COMFYUI_PATH"]), python=Path(sys.executable))
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    fill_in(workflow, options)
    base = base_directory()
    print(f"Starting ComfyUI (log: {base / LOG_NAME}) ...", end="", flush=True)
    started = time.monotonic()
    # ComfyUI numbers the files itself, so writing straight into the folder overwrites nothing.
    with running_server(host, base, PACK, ("--output-directory", str(folder))) as client:
        print(f" {time.monotonic() - started:.0f} s", flush=True)
        progress = Progress({node_id: node["_meta"]["title"] for node_id, node in workflow.items()})
        results = outputs(client.run(workflow, progress.show, timeout=None))
        progress.end()
    saved = next(output for node_id, output in results.items() if workflow[node_id]["class_type"] == "SaveVideo")
    return folder / saved["images"][0]["filename"]


class Progress:
    """Shows which node runs and how far it is: on one line of a terminal, or as plain lines."""

    def __init__(self, titles: dict[str, str]) -> None:
        self._titles = titles
        self._shown = ""
        self._started = time.monotonic()
        self._on_terminal = sys.stdout.isatty()

    def show(self, event: Event) -> None:
        """Take one event of the server."""
        if event.type != "progress_state":
            return
        for node_id, node in event.data["nodes"].items():
            if node["state"] == "running":
                steps = f" {node['value']:.0f}/{node['max']:.0f}" if node["max"] > 1 else ""
                self._print(f"{self._titles.get(node_id, node_id)}{steps}")

    def end(self) -> None:
        """Say how long it took."""
        self._print("Done")
        if self._on_terminal:
            print()

    def _print(self, text: str) -> None:
        if text == self._shown:
            return
        self._shown = text
        line = f"  {text} ({time.monotonic() - self._started:.1f} s)"
        if self._on_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
        else:
            print(line, flush=True)


def _properties(video: Path) -> str:
    """Say what a decoder finds in the file."""
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(video=0))
        rate = float(stream.average_rate)
        return f"{stream.width}x{stream.height}, {frames} frames, {rate:g} fps, {video.stat().st_size / 1000:.0f} kB"


def _show(video: Path) -> None:
    if sys.platform == "win32":
        os.startfile(video)
    else:
        opener = "open" if sys.platform == "darwin" else "xdg-open"
        if not shutil.which(opener):
            raise HostError(f"--open needs the program {opener}; open the file yourself.")
        subprocess.run([opener, str(video)], check=False)


if __name__ == "__main__":
    run_command(main)
