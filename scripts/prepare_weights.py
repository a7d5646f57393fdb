"""Bring LongCat-Video's weights into single files that ComfyUI's own loaders take, or into a folder for LongCatLoader.

    python3 scripts/prepare_weights.py SOURCE DEST [--dtype bf16|fp8|int8|nvfp4] [--layout comfy|official] [--validate]

SOURCE is the official download (dit/ or transformer/, text_encoder/, tokenizer/, vae/, scheduler/, lora/), one of its
folders with weights, or a .safetensors file with a DiT or a LoRA, named and quantised in any way that the pack reads.

With --layout comfy DEST is ComfyUI's models folder: diffusion_models/, text_encoders/, vae/ and loras/ are written
below it. With --layout official it is a folder for LongCatLoader. --dtype is of the DiT's large matrices; the rest and
the text encoder are bf16, the VAE stays as it is. It takes about 1 GB of memory, whatever the size. Stopped at any
time, the same command goes on where it was.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from host.command import hosted, run_command
from host.imports import use_pack
from prepare.formats import COMFY, DTYPES, LAYOUTS


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="the weights as they were downloaded")
    add("dest", type=Path, metavar="DEST", help="the folder to write into")
    add("--dtype", choices=DTYPES, default="bf16", help="of the DiT's large matrices (default: bf16)")
    add("--layout", choices=LAYOUTS, default=COMFY, help="of DEST (default: comfy)")
    validating = "read everything back and compare it with SOURCE; files that are there already are only compared"
    add("--validate", action="store_true", help=validating)
    add("--force", action="store_true", help="replace files that are there already")
    return parser.parse_args()


def _prepare(options: argparse.Namespace) -> int:
    use_pack()
    from prepare.run import run

    return run(options)


if __name__ == "__main__":
    run_command(lambda: hosted(_options, _prepare, before=lambda _: ["tqdm"]))
