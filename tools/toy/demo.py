"""Make a video with the pack in a real, headless ComfyUI, from nothing but a clone of this repository.

    python3 scripts/demo.py ["a red circle moving right on a white background"] [--mode t2v|i2v|continue|storyboard]

The model is the toy in assets/toy: a small LongCat-Video that learned to draw one moving shape. In mode i2v it is given
a picture, in mode continue a short video, both drawn here; in mode storyboard every prompt makes a segment.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # an embedded Python does not do it
from host import PACK, Host, HostError, cache_root, ensure_host, run_command, run_in_host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from comfyui_server import Event

TOY = PACK / "assets" / "toy"
MAX_PORT = 65535
DIRECTIONS = ("right", "down", "left", "up")


class Mode(NamedTuple):
    """A shipped workflow and what the demo runs it with."""

    workflow: str
    length: int
    """Frames, of each segment."""
    default: tuple[str, ...]
    """Prompts."""


RED_CIRCLE = "a red circle moving right on a white background"
MODES = {
    "t2v": Mode("longcat_t2v", 17, (RED_CIRCLE,)),
    "i2v": Mode("longcat_i2v", 17, (RED_CIRCLE,)),
    "continue": Mode("longcat_continuation", 33, (RED_CIRCLE,)),
    "storyboard": Mode("longcat_interactive", 17, tuple(RED_CIRCLE.replace("right", word) for word in DIRECTIONS)),
}


def main() -> int:
    """Set up, and run this file again under the host's Python, which has what the second half imports."""
    options = _options()
    if options.hosted:
        return _demonstrate(options)
    _check_writable(options.output)
    if options.open:
        _opener()
    if not TOY.is_dir():
        raise HostError(f"The toy model is missing ({TOY}): clone the repository, packages do not contain it.")
    return run_in_host(ensure_host(), [__file__, "--hosted", *sys.argv[1:]])


def base_directory() -> Path:
    """ComfyUI's files for the demo of this clone: another clone's server must not find its own pack replaced."""
    return cache_root() / "demo" / hashlib.sha256(str(PACK).encode()).hexdigest()[:16]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="*", help="what the video should show; mode storyboard takes several")
    parser.add_argument("--mode", choices=MODES, default="t2v", help="what to make (default: %(default)s)")
    parser.add_argument(
        "--length", type=_length, help="frames (of a segment), a multiple of 4 plus 1 (default: 17 or 33)"
    )
    parser.add_argument("--steps", type=_at_least(1), default=30, help="sampling steps (default: %(default)s)")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="seed of the noise (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=PACK / "output", metavar="DIR", help="default: output/")
    parser.add_argument("--port", type=_port, help="of the server, 1 to 65535 (default: a free one)")
    parser.add_argument("--open", action="store_true", help="show the video when it is done")
    parser.add_argument("--hosted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not all(map(str.strip, options.prompt)):
        parser.error("a prompt is empty: say what the video should show, or give no prompt to see the default.")
    if len(options.prompt) > 1 and options.mode != "storyboard":
        parser.error(f"{len(options.prompt)} prompts: --mode {options.mode} takes one; put it in quotation marks.")
    return options


def _demonstrate(options: argparse.Namespace) -> int:
    from comfyui_server import ExecutionFailed, PromptRejected, ServerError
    from toy_clips import words_of
    from videos import read_video

    mode = MODES[options.mode]
    prompts = [" ".join(words_of(prompt)) for prompt in options.prompt] or mode.default
    print("The toy model draws one shape that moves or stands still; it is small enough to run anywhere.")
    _name_unknown_words(prompts)
    try:
        video = _make_video(options, mode, prompts, options.output.absolute())
    except (ServerError, PromptRejected, ExecutionFailed) as error:
        raise HostError(str(error)) from error
    frames, fps = read_video(str(video))
    sheet = video.with_suffix(".png")
    write_contact_sheet(frames, sheet)
    _, height, width, _ = frames.shape
    print(
        f"Saved {video}: {width}x{height}, {len(frames)} frames, {fps:g} fps.\nSaved {sheet}: its frames at a glance.\n"
        'For real videos get the real model: see "Model files" in README.md.'
    )
    if options.open:
        _show(video)
    return 0


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of {minimum} or more")
        return int(text)

    return number


def _length(text: str) -> int:
    length = _at_least(1)(text)
    if length % 4 != 1:
        below = max(1, length - (length - 1) % 4)
        raise argparse.ArgumentTypeError(f"{length} is not a multiple of 4 plus 1; use {below} or {below + 4}")
    return length


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text} is no port; use 1 to {MAX_PORT}, or none for a free one")
    return int(text)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file, not a folder" if folder.is_file() else error.strerror
        raise HostError(
            f"The video cannot be written to {folder}: {reason}. Name another folder with --output."
        ) from error


def _name_unknown_words(prompts: Sequence[str]) -> None:
    from toy_clips import WORDS, unknown_words

    unknown = dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt))
    if unknown:
        print(f"It does not know: {', '.join(unknown)}. Its words are: {', '.join(sorted(WORDS))}.")


def _make_video(options: argparse.Namespace, mode: Mode, prompts: Sequence[str], folder: Path) -> Path:
    from comfyui_server import LOG_NAME, outputs, running_server
    from toy_workflows import install_toy, toy_workflow, write_given_files
    from videos import saved_file

    host = Host(comfyui=Path(os.environ["COMFYUI_PATH"]), python=Path(sys.executable))
    length = mode.length if options.length is None else options.length
    workflow = toy_workflow(mode.workflow, prompts, length, options.steps, options.seed)
    base = base_directory()
    install_toy(base / "models")
    write_given_files(base / "input", workflow, prompts[0])
    print(f"Starting ComfyUI (log: {base / LOG_NAME}) ...", end="", flush=True)
    started = time.monotonic()
    # ComfyUI numbers the files itself, so writing straight into the folder overwrites nothing.
    with running_server(host, base, PACK, ("--output-directory", str(folder)), port=options.port) as client:
        print(f" {time.monotonic() - started:.0f} s", flush=True)
        progress = Progress({node_id: node["_meta"]["title"] for node_id, node in workflow.items()})
        results = outputs(client.run(workflow, progress.show, timeout=None))
        progress.end()
    file = saved_file(workflow, results)
    return folder / file["subfolder"] / file["filename"]


def write_contact_sheet(frames: np.ndarray, path: Path, columns: int = 6, rows: int = 2) -> None:
    """Write evenly spread frames, from the first to the last, side by side and enlarged."""
    from PIL import Image
    from videos import spread

    _, height, width, _ = frames.shape
    scale, gap = max(1, 128 // width), 4
    cell_width, cell_height = scale * width + gap, scale * height + gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), "white")
    for index, frame in enumerate(spread(frames, columns * rows)):
        row, column = divmod(index, columns)
        place = (gap + column * cell_width, gap + row * cell_height)
        enlarged = Image.fromarray(frame).resize((scale * width, scale * height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, place)
    sheet.save(path)


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


def _show(video: Path) -> None:
    if sys.platform == "win32":
        os.startfile(video)
    else:
        subprocess.run([_opener(), str(video)], check=False)


def _opener() -> str:
    opener = {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
    if not shutil.which(opener):
        raise HostError(f"--open needs the program {opener}; leave it out and open the file yourself.")
    return opener


if __name__ == "__main__":
    run_command(main)
