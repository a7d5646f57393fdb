"""Where a video goes: a folder that can be written, and the program that shows it. Needs the standard library only."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from host.process import HostError


def check_writable(folder: Path) -> None:
    """Make a folder where it is missing. Raises HostError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file, not a folder" if folder.is_file() else error.strerror
        raise HostError(
            f"The video cannot be written to {folder}: {reason}. Name another folder with --output."
        ) from error


def show(video: Path) -> None:
    """Open a video as a double click does. Raises HostError if there is no program for it."""
    if sys.platform == "win32":
        os.startfile(video)
    else:
        subprocess.run([opener(), str(video)], check=False)


def opener() -> str:
    """The program that opens files. Raises HostError if there is none."""
    program = {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
    if not shutil.which(program):
        raise HostError(f"--open needs the program {program}; leave it out and open the file yourself.")
    return program
