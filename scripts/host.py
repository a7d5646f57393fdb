"""Set up a real, unmodified ComfyUI: the host that the demo, the tests and the benchmark run in.

``python3 scripts/host.py`` makes it ready and prints where it is. It needs Python 3.10 to 3.13 and PyPI, nothing else.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from host.command import run_command
from host.setup import ensure_host


def main() -> int:
    """Make the host ready and print where it is."""
    host = ensure_host()
    print(f"COMFYUI_PATH={host.comfyui}")
    print(f"COMFYUI_PYTHON={host.python}")
    return 0


if __name__ == "__main__":
    run_command(main)
