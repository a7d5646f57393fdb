"""A user's own ComfyUI as the host: found, checked, and left as it is."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from host.process import Host, HostError, installed_versions, interpreter

if TYPE_CHECKING:
    from collections.abc import Sequence

MINIMUM_COMFYUI = "0.30.0"


def own_host(root: Path, packages: Sequence[str]) -> Host:
    """The ComfyUI in a folder, with its own Python, which must have `packages`, ``name`` or ``name>=version`` each.

    Raises HostError.
    """
    if not (root / "main.py").is_file():
        raise HostError(
            f"COMFYUI_PATH is {root}, which has no main.py: set it to the folder of ComfyUI that main.py is in, "
            "or unset it to have one set up."
        )
    version = _comfyui_version(root)
    if _numbers(version) < _numbers(MINIMUM_COMFYUI):
        raise HostError(
            f"COMFYUI_PATH is {root}, a ComfyUI of version {version}: {MINIMUM_COMFYUI} or newer is needed. "
            "Update it, or unset COMFYUI_PATH to have one set up."
        )
    python = _own_python(root)
    _check_packages(python, packages)
    return Host(comfyui=root, python=python)


def _comfyui_version(root: Path) -> str:
    file = root / "comfyui_version.py"
    match = re.search(r'__version__ = "([^"]+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return match.group(1) if match else "unknown"


def _own_python(root: Path) -> Path:
    given = os.environ.get("COMFYUI_PYTHON")
    if given:
        found = shutil.which(given)
        if not found:
            raise HostError(
                f"COMFYUI_PYTHON is {given}, which is no program: set it to the Python that ComfyUI runs with."
            )
        return Path(found).absolute()
    candidates = (
        interpreter(root / "venv"),
        interpreter(root / ".venv"),
        root.parent / "python_embeded" / "python.exe",
    )
    return next((python for python in candidates if python.is_file()), Path(sys.executable))


def _check_packages(python: Path, needed: Sequence[str]) -> None:
    """Check for packages given as ``name`` or ``name>=version``, and for torch, without importing any."""
    floors = {name: floor for name, _, floor in (package.partition(">=") for package in needed)}
    versions = installed_versions(python, ["torch", *floors])
    if versions["torch"] is None:
        raise HostError(
            f"{python} has no torch, so it is not the Python that ComfyUI runs with: set COMFYUI_PYTHON to that one."
        )
    lacking = [
        f'"{name}>={floor}"' if floor else name
        for name, floor in floors.items()
        if _numbers(versions[name] or "") < (_numbers(floor) or (0,))
    ]
    if lacking:
        raise HostError(
            f"{python} lacks {' '.join(lacking)}. Install with:\n  {python} -m pip install {' '.join(lacking)}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
