"""What the demo can make. Needs the standard library only."""

from typing import NamedTuple

DIRECTIONS = ("right", "down", "left", "up")
RED_CIRCLE = "a red circle moving right on a white background"


class Mode(NamedTuple):
    """A shipped workflow and what the demo runs it with."""

    workflow: str
    length: int
    """Frames, of each segment."""
    default: tuple[str, ...]
    """Prompts."""


MODES = {
    "t2v": Mode("longcat_t2v", 17, (RED_CIRCLE,)),
    "i2v": Mode("longcat_i2v", 17, (RED_CIRCLE,)),
    "continue": Mode("longcat_continuation", 33, (RED_CIRCLE,)),
    "storyboard": Mode("longcat_interactive", 17, tuple(RED_CIRCLE.replace("right", word) for word in DIRECTIONS)),
}
