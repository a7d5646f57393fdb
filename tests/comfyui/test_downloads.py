"""Every download command in every text, read by the parser of the tool itself, in its oldest and its newest form.

Only what would be fetched is asked; nothing is downloaded but the older huggingface_hub, once.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
TEXTS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "web/docs/*.md", "workflows/*.json", "subgraphs/*.json")
COMMAND = re.compile(r"\bhf download [^`\n]+")
RELEASED = "meituan-longcat/LongCat-Video"
OLDER = "huggingface_hub==0.36.0"  # the last before the command line was written anew
MODEL = {"dit", "text_encoder", "tokenizer", "vae", "scheduler"}
FILES = [*(f"{folder}/file" for folder in (*sorted(MODEL), "lora", "assets", "dit_other")), "README.md"]
FETCHED = "fetched: "
# Runs the command with the two functions that would download replaced by one that says what they were asked for.
DRIVER = """
import json, sys
import huggingface_hub.cli.download as download
from huggingface_hub.cli.hf import main
from huggingface_hub.utils import filter_repo_objects

files = json.loads(sys.argv.pop(1))

def say(repo_id, allow_patterns=None, ignore_patterns=None, filename=None, local_dir=None, **others):
    asked = [filename] if filename else filter_repo_objects(files, allow_patterns=allow_patterns)
    print("\\nfetched: " + json.dumps([repo_id, list(asked), str(local_dir)]))
    return ""

download.snapshot_download = download.hf_hub_download = say
main()
"""


def strings(value: object) -> Iterator[str]:
    """All texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def commands() -> Iterator[tuple[str, str]]:
    """Every download command in the texts of the pack, with the text that it is in."""
    for pattern in TEXTS:
        for path in sorted(PACK.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                text = "\n".join(strings(json.loads(text)))
            for command in COMMAND.findall(text):
                yield path.relative_to(PACK).as_posix(), command


COMMANDS = sorted(set(commands()))


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with an older huggingface_hub."""
    folder = str(tmp_path_factory.mktemp("older"))
    subprocess.run([sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", folder, OLDER], check=True)
    return folder


def fetched(command: str, packages: str) -> tuple[str, set[str], str]:
    """The repository, the folders or files, and the place that a command downloads."""
    arguments = shlex.split(command)[1:]
    run = [sys.executable, "-c", DRIVER, json.dumps(FILES), *arguments]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": packages}, check=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(FETCHED)] or [done.stdout + done.stderr]
    assert line.startswith(FETCHED), line
    repository, files, place = json.loads(line.removeprefix(FETCHED))
    return repository, {name.partition("/")[0] for name in files}, place


def test_there_are_commands() -> None:
    assert {"README.md"} < {text for text, _ in COMMANDS}
    assert sum(text.startswith("workflows/") for text, _ in COMMANDS) == 10


@pytest.mark.parametrize("packages", ["newest", "older"])
@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS}))
def test_command_fetches_the_whole_model(command: str, packages: str, request: pytest.FixtureRequest) -> None:
    where = request.getfixturevalue("older") if packages == "older" else ""
    repository, folders, place = fetched(command, where)
    assert repository == RELEASED
    assert folders - {"lora"} == MODEL
    assert place.endswith("models/longcat/LongCat-Video")


@pytest.mark.parametrize(("text", "command"), COMMANDS)
def test_loras_are_fetched_where_they_are_needed(text: str, command: str) -> None:
    needs_loras = "_lora.safetensors" in (PACK / text).read_text(encoding="utf-8")
    assert (" lora/ " in command) == needs_loras or text == "README.md"
