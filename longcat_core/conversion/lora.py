"""A LoRA of any convention as ComfyUI and most tools read it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.changes import Change, read_change
from ..lora.file import LoraFile
from ..lora.names import is_for_text, names_of
from ..weights import layouts
from ..weights.advice import GET_AGAIN
from ..weights.safetensors_file import Reader, TensorType
from ..weights.stored import Stored
from .values import Held, Plain, Quantised

PREFIX = "diffusion_model."


class Difference(NamedTuple):
    """The sum of a LoRA's changes of one weight, fp32 `[out, in]`."""

    changes: tuple[Change[Stored], ...]

    @property
    def type(self) -> TensorType:
        """Its dtype and shape."""
        return TensorType(torch.float32, shape_of(self.changes[0]))

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of its rows."""
        result = torch.zeros(self.type.of_rows(stop - start).shape)
        for change in self.changes:
            size = change.up.type.num_rows
            first = change.rows.part * size
            begin, end = max(start, first), min(stop, first + size)
            if begin < end:
                up = change.up.rows(begin - first, end - first).float()
                down = change.down and change.down.tensor().float()
                result[begin - start : end - start] += change.factor * (up if down is None else up @ down)
        return result


def shape_of(change: Change[Stored]) -> tuple[int, int]:
    """Of the weight that is changed."""
    num_rows = change.up.type.num_rows * change.rows.num_parts
    return num_rows, (change.up if change.down is None else change.down).type.shape[1]


def lora_targets(reader: Reader) -> list[Plain | Quantised]:
    """A LoRA of any convention in bf16, as Wan's layers are named, with `alpha` in fp32.

    What cannot be written as one pair of matrices is written as the whole difference.

    Raises:
        ValueError: some tensors are not understood, or do not fit each other.
    """
    file = LoraFile.of(frozenset(reader.tensors))
    targets: list[Plain | Quantised] = []
    used: set[str] = set()
    for layer in sorted({part for changed in file.index for part in layouts.parts_of(changed)}):
        pieces = file.pieces(layer, reader)
        used |= {name for piece in pieces for name in names_of(piece)}
        changes = tuple(read_change(piece, reader) for piece in pieces)
        if len({shape_of(change) for change in changes}) > 1:
            raise ValueError(f"its changes of {layer} are of different sizes: {GET_AGAIN}.")
        if changes:
            name = PREFIX + layouts.from_network(f"{layer}.weight", layouts.WAN).removesuffix(".weight")
            targets += _targets_of_layer(name, changes)
    left = sorted(name for name in reader.tensors.keys() - used if not is_for_text(name))
    if left:
        raise ValueError(f"{len(left)} of its tensors are not understood, for example {left[0]}: use it as it is.")
    return targets


def _targets_of_layer(name: str, changes: tuple[Change[Stored], ...]) -> list[Plain | Quantised]:
    up, down = changes[0].up, changes[0].down
    if len(changes) > 1 or changes[0].rows != layouts.Rows() or down is None:
        return [Plain(f"{name}.diff", Difference(changes), torch.bfloat16)]
    alpha = torch.tensor(changes[0].factor * down.type.num_rows)
    return [
        Plain(f"{name}.lora_down.weight", down, torch.bfloat16),
        Plain(f"{name}.lora_up.weight", up, torch.bfloat16),
        Plain(f"{name}.alpha", Held(alpha), torch.float32),
    ]
