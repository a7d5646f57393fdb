"""Check and test the pack in a real ComfyUI: ruff, mypy, then all of pytest.

Arguments go to pytest, as in ``python3 scripts/test.py -k parity`` or ``... tests/unit -x``. Without a path all files
are shared out to two processes. A skipped test is a failure, unless its reason starts with "needs hardware:". The last
line counts everything.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from host.checks import check
from host.command import run_command


def main() -> int:
    """Run everything, also after a failure, and count."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    return check(arguments)


if __name__ == "__main__":
    run_command(main)
