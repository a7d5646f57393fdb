"""Benchmark the network: time and peak memory of one forward pass and of a CFG pair, in fp32 on the CPU.

A second table shows what the cache of condition frames gains, against what the count of operations predicts.
``--refinement`` prints other tables instead: block-sparse against dense attention, on a graphics card if there is one,
and the memory of a call with and without spans of frames.

``--reference DIR`` adds the original implementation, taken from a checkout of its repository, to the same run: on the
same weights and inputs, both with torch's scaled dot-product attention, taking turns. Their outputs must agree.

Times are medians, each with a range that holds the true median with a probability of 90 % or more: from the smallest
to the largest of 5 repeats, without the outliers of more. Time ratios are taken between neighbouring repeats.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))  # first: a command is named as its package
from bench.arguments import checkout, latent_size, positive
from host.command import hosted, run_command
from host.imports import use_comfyui


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--reference", type=checkout, metavar="DIR", help="checkout of meituan-longcat/LongCat-Video")
    add("--repeats", type=positive, default=5, help="of every measured time (default: %(default)s)")
    add("--hidden", type=positive, default=1024, help="width of the network (default: %(default)s)")
    add("--heads", type=positive, default=8, help="attention heads (default: %(default)s)")
    add("--depth", type=positive, default=4, help="blocks (default: %(default)s)")
    add("--latent", type=latent_size, default="8x24x40", metavar="TxHxW", help="default: %(default)s")
    add("--text", type=positive, default=256, help="tokens, half are padding (default: %(default)s)")
    add("--threads", type=positive, help="of torch (default: its own choice)")
    add("--refinement", action="store_true", help="only the tables of refinement")
    failing = "fail if the original is faster or smaller, or if the cache gains too little"
    add("--check", action="store_true", help=failing)
    options = parser.parse_args()
    if options.hidden % (8 * options.heads):
        parser.error(f"--hidden {options.hidden} must be a multiple of 8 * --heads ({8 * options.heads})")
    return options


def _packages(options: argparse.Namespace) -> list[str]:
    return ["diffusers"] if options.reference else []  # the original is built on it


def _benchmark(options: argparse.Namespace) -> int:
    use_comfyui(pytorch_attention=True)
    from bench.run import benchmark

    return benchmark(options)


if __name__ == "__main__":
    run_command(lambda: hosted(_options, _benchmark, before=_packages))
