"""A video of the toy model, made by a real server out of a shipped workflow."""

import argparse
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from host.client import LOG_NAME, ExecutionFailed, PromptRejected, ServerError, outputs
from host.output import show
from host.process import PACK, HostError, this_host
from host.progress import Progress
from host.server import running_server
from host.setup import cache_root
from host.videos import read_video, saved_file, write_contact_sheet

from toy.clips import WORDS, unknown_words, words_of
from toy.modes import MODES, Mode
from toy.workflows import install_toy, toy_workflow, write_given_files


def demonstrate(options: argparse.Namespace) -> int:
    """Make the video that the options of scripts/demo.py ask for, say where it is, and return the exit status.

    Raises HostError where ComfyUI does not make it.
    """
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
        show(video)
    return 0


def base_directory() -> Path:
    """ComfyUI's files for the demo of this clone: another clone's server must not find its own pack replaced."""
    return cache_root() / "demo" / hashlib.sha256(str(PACK).encode()).hexdigest()[:16]


def _name_unknown_words(prompts: Sequence[str]) -> None:
    unknown = dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt))
    if unknown:
        print(f"It does not know: {', '.join(unknown)}. Its words are: {', '.join(sorted(WORDS))}.")


def _make_video(options: argparse.Namespace, mode: Mode, prompts: Sequence[str], folder: Path) -> Path:
    length = mode.length if options.length is None else options.length
    workflow = toy_workflow(mode.workflow, prompts, length, options.steps, options.seed)
    base = base_directory()
    install_toy(base / "models")
    write_given_files(base / "input", workflow, prompts[0])
    print(f"Starting ComfyUI (log: {base / LOG_NAME}) ...", end="", flush=True)
    started = time.monotonic()
    # ComfyUI numbers the files itself, so writing straight into the folder overwrites nothing.
    with running_server(this_host(), base, PACK, ("--output-directory", str(folder)), port=options.port) as client:
        print(f" {time.monotonic() - started:.0f} s", flush=True)
        progress = Progress({node_id: node["_meta"]["title"] for node_id, node in workflow.items()})
        results = outputs(client.run(workflow, progress.show, timeout=None))
        progress.end()
    file = saved_file(workflow, results)
    return folder / file["subfolder"] / file["filename"]
