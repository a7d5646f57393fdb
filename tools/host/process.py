"""The host: a ComfyUI and the Python that runs it, and how to run something there. Needs the standard library only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TOOLS = Path(__file__).resolve().parents[1]
PACK = TOOLS.parent
COMPLAINT_LENGTH = 400  # characters


class HostError(Exception):
    """The host cannot be made ready; the message is a sentence for the user."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the Python that runs it."""

    comfyui: Path
    """The folder main.py is in."""
    python: Path
    """Full path of the interpreter."""


def this_host() -> Host:
    """The host that this process runs in, as `run_in_host` named it."""
    return Host(comfyui=Path(os.environ["COMFYUI_PATH"]), python=Path(sys.executable))


def host_environment() -> dict[str, str]:
    """Return this process's environment without what harms a host's Python.

    PYTHONDONTWRITEBYTECODE costs 12 s at every start of ComfyUI; the others mix foreign packages into it.
    """
    harmful = {"PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH"}
    return {name: value for name, value in os.environ.items() if name not in harmful}


def run_in_host(host: Host, arguments: Sequence[str | Path], cwd: Path | None = None) -> int:
    """Run the host's Python with the host named in its environment, and return its exit status.

    Ctrl-C reaches the child as well: this waits until it has cleaned up.
    """
    named = {"COMFYUI_PATH": str(host.comfyui), "COMFYUI_PYTHON": str(host.python)}
    command = [str(host.python), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, env={**host_environment(), **named})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
        except SystemExit:
            process.terminate()
            process.wait()
            raise


def interpreter(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / "Scripts" / "python.exe" if sys.platform == "win32" else environment / "bin" / "python"


_VERSIONS_OF = """
import importlib.metadata, json, sys
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = None
print(json.dumps(versions))
"""


def installed_versions(python: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Versions of packages that an interpreter has, None for one that it lacks, without importing any.

    Raises HostError if it does not run.
    """
    command = [str(python), "-c", _VERSIONS_OF, *names]
    result = subprocess.run(command, env=host_environment(), capture_output=True, text=True, check=False)
    if result.returncode:
        raise HostError(f"{python} does not run as a Python interpreter: {complaint(result.stderr)}")
    return json.loads(result.stdout)


def complaint(output: str) -> str:
    """Return the first error that pip or uv printed, or else the last line of whatever ran, on one line."""
    error = re.search(r"^error.*", output, re.M | re.S | re.I)
    words = re.findall(r"[!-~]+", error.group() if error else output.strip().rpartition("\n")[2])
    return " ".join(words)[:COMPLAINT_LENGTH] or "It said nothing."


def say(text: str, end: str = "\n") -> None:
    """Tell the user on stderr, at once: stdout is for results."""
    print(text, end=end, file=sys.stderr, flush=True)
