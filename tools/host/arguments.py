"""Types of the commands' arguments: each gives the value of a text, or the sentence that says what is wrong with it."""

from argparse import ArgumentTypeError
from collections.abc import Callable

MAX_PORT = 65535


def at_least(minimum: int) -> Callable[[str], int]:
    """Whole numbers of `minimum` or more."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise ArgumentTypeError(f"{text} is not a whole number of {minimum} or more")
        return int(text)

    return number


def video_length(text: str) -> int:
    """Numbers of frames, multiples of 4 plus 1."""
    length = at_least(1)(text)
    if length % 4 != 1:
        below = max(1, length - (length - 1) % 4)
        raise ArgumentTypeError(f"{length} is not a multiple of 4 plus 1; use {below} or {below + 4}")
    return length


def port(text: str) -> int:
    """Ports of a server."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PORT:
        raise ArgumentTypeError(f"{text} is no port; use 1 to {MAX_PORT}, or none for a free one")
    return int(text)
