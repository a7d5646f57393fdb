"""Types of the benchmark's arguments. Needs the standard library only."""

from argparse import ArgumentTypeError
from pathlib import Path


def positive(text: str) -> int:
    """Whole numbers above 0."""
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def latent_size(text: str) -> tuple[int, int, int]:
    """Sizes as frames x height x width of a latent."""
    sizes = tuple(map(positive, text.split("x")))
    if len(sizes) != 3 or sizes[1] % 2 or sizes[2] % 2:
        raise ArgumentTypeError(f"{text!r} is not frames x height x width with even height and width")
    return sizes


def checkout(text: str) -> Path:
    """Folders with the original implementation."""
    folder = Path(text).absolute()
    network = Path("longcat_video", "modules", "longcat_video_dit.py")
    if not (folder / network).is_file():
        raise ArgumentTypeError(f"{folder} is no checkout of the original: it has no {network}")
    return folder
