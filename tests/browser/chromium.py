"""Find a Chromium that can run the browser tests; as a program, download one where none is found.

``python tests/browser/chromium.py`` needs playwright, and downloads its Chromium into the user's cache folder.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "LONGCAT_CHROMIUM"
ON_PATH = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    *("microsoft-edge", "microsoft-edge-stable", "msedge"),
)
IN_PROGRAM_FILES = ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")
IN_APPLICATIONS = (
    *("Google Chrome.app/Contents/MacOS/Google Chrome", "Chromium.app/Contents/MacOS/Chromium"),
    "Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
INSTALL = (
    "The browser tests need Chromium, Chrome or Edge: install one (on Debian: apt-get install chromium), "
    f"or run '{sys.executable} -m playwright install --with-deps chromium', or name its program in {VARIABLE}."
)
OTHER = f"The browser tests need one that does: install Chrome, Edge or Debian's chromium, or name it in {VARIABLE}."


def find_chromium() -> Path | None:
    """Return the browser that the user named, or one that is installed, or None.

    Raises FileNotFoundError if the one named is not there.
    """
    named = os.environ.get(VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise FileNotFoundError(f"{VARIABLE} is {named}, which is no program: name a Chromium, Chrome or Edge.")
        return Path(found)
    on_path = (Path(found) for name in ON_PATH if (found := shutil.which(name)))
    return next(on_path, None) or next((path for path in _usual_places() if path.is_file()), None)


def _usual_places() -> Iterator[Path]:
    for folder in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
        if folder in os.environ:
            yield from (Path(os.environ[folder], name) for name in IN_PROGRAM_FILES)
    for root in (Path("/Applications"), Path.home() / "Applications"):
        yield from (root / name for name in IN_APPLICATIONS)


if __name__ == "__main__" and not os.environ.get(VARIABLE) and find_chromium() is None:
    sys.exit(subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False).returncode)
