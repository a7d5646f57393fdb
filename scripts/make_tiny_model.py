"""Write a tiny LongCat-Video folder with random weights, for tests and demonstrations without a download.

    COMFYUI_PATH=/path/to/ComfyUI python scripts/make_tiny_model.py DEST [--seed 0] [--shards 1]

The layout, the file formats and the libraries that write them are those of the released folder (dit/, scheduler/,
text_encoder/, tokenizer/, vae/); only the sizes are small. Run it with the Python that runs ComfyUI, plus diffusers.
A DEST that this script has already completed with the same options is left as it is.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from host.imports import use_comfyui


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    parser.add_argument("--shards", type=int, default=1, help="number of files for the DiT (with an index if above 1)")
    options = parser.parse_args()
    dest = options.dest.resolve()
    try:
        use_comfyui()
        from tiny.model import make

        make(dest, options.seed, options.shards)
    except ValueError as error:
        parser.error(str(error))
    size = sum(path.stat().st_size for path in dest.rglob("*") if path.is_file())
    print(f"{dest}: tiny LongCat-Video model, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
