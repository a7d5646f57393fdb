"""Several bypassed LoRAs in a row, of which ComfyUI keeps only the last one."""

from collections.abc import Sequence
from typing import Any

from comfy.patcher_extension import PatcherInjection

BYPASS = "bypass_lora"
"""The kind under which core keeps the injections of bypassed LoRAs."""


class Stacked(PatcherInjection):
    """Injections one upon the other: taken out in the reverse order of putting in."""

    def __init__(self, parts: Sequence[PatcherInjection]) -> None:
        super().__init__(self.put_in, self.take_out)
        self.parts = parts

    def put_in(self, patcher: Any) -> None:
        """Inject all."""
        for part in self.parts:
            part.inject(patcher)

    def take_out(self, patcher: Any) -> None:
        """Eject all."""
        for part in reversed(self.parts):
            part.eject(patcher)


def stack_bypassed(patcher: Any) -> None:
    """Bring back the bypassed LoRAs that another one behind them has displaced.

    Core keeps injections by kind, so that of several bypassed LoRAs in a row only the last one is left; the patchers
    that it cloned still have theirs.
    """
    stack: list[PatcherInjection] = []
    ancestor = patcher
    while ancestor is not None:
        stack = [part for part in bypassed(ancestor) if part not in stack] + stack
        ancestor = ancestor.parent
    if len(stack) > len(bypassed(patcher)):
        patcher.eject_model()
        patcher.set_injections(BYPASS, [Stacked(stack)])
        patcher.inject_model()


def bypassed(patcher: Any) -> list[PatcherInjection]:
    """The injections of a patcher's bypassed LoRAs, one by one."""
    return [part for each in patcher.get_injections(BYPASS) or () for part in getattr(each, "parts", [each])]
