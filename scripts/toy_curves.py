"""Draw the learning curves of the toy model: `python3 scripts/toy_curves.py WORK PICTURE.svg`.

WORK is the folder of scripts/train_toy.py, with one log per part.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from toy.curves import write_picture


def main() -> None:
    """Command line."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    work, picture = map(Path, sys.argv[1:])
    if not work.is_dir():
        sys.exit(f"{work} is not a folder: name the one that train_toy.py wrote its logs to.")
    write_picture(work, picture)


if __name__ == "__main__":
    main()
