"""Run every shipped workflow on the toy model and put frames of its video into its thumbnail, `workflows/<name>.jpg`.

python3 scripts/make_thumbnails.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from host.command import hosted, run_command


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser.parse_args()


def _make_all(_: argparse.Namespace) -> int:
    from toy.thumbnails import make_all

    make_all()
    return 0


if __name__ == "__main__":
    run_command(lambda: hosted(_options, _make_all))
