"""LoRA files of every convention for ComfyUI's own LoRA nodes.

ComfyUI asks each of its weight adapters, for each layer of a model, what a file holds for it. The one that is added
here answers for LongCat-Video where core's do not know the name; from then on core treats it as any other, merged into
the weights or beside them (*bypass*), with strengths, stacking, hooks and unloading.

Source of the mathematics: meituan-longcat/LongCat-Video, `LoRAModule` and `LoRANetwork` in `modules/lora_utils.py`.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.weight_adapter
import torch
from torch import Tensor

from ..lora.changes import Change, read_change
from ..lora.file import LoraFile
from ..lora.names import FURTHER, Piece, names_of
from ..weights.layouts import Rows
from ..weights.stored import InMemory, Stored

PREFIX = "diffusion_model."
# Core asks for the layers of a model in the order of its network. This one comes before all blocks and is
# LongCat-Video's alone, so that other families are left alone; the last one is when a file has been read.
FAMILY_LAYER = "diffusion_model.y_embedder.y_proj.0"
LAST_LAYER = "diffusion_model.final_layer.linear"


@dataclass
class Reading:
    """A file that core is reading for a LongCat-Video model, layer by layer."""

    file: LoraFile
    source: InMemory
    matched: set[str] = field(default_factory=set)
    """Names of tensors that were read here."""


READINGS: dict[int, Reading] = {}
"""Readings by the identity of the set of names that core keeps for as long as it reads a file, and no longer."""


def reading_of(x: str, lora: Mapping[str, Tensor], loaded_keys: set[str] | None) -> Reading | None:
    """The reading that core's set of names belongs to; None if the model is of another family."""
    if loaded_keys is None:
        return None
    if x == FAMILY_LAYER and id(loaded_keys) not in READINGS:
        READINGS[id(loaded_keys)] = Reading(LoraFile.of(frozenset(lora)), InMemory(lora))
        weakref.finalize(loaded_keys, READINGS.pop, id(loaded_keys))
    return READINGS.get(id(loaded_keys))


class LongCatLoRA(comfy.weight_adapter.WeightAdapterBase):
    """The changes that a LoRA file makes to one layer, packed as core moves them between devices."""

    name = "longcat_lora"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def load(
        cls,
        x: str,
        lora: dict[str, Tensor],
        alpha: float | None,
        dora_scale: Tensor | None,
        loaded_keys: set[str] | None = None,
    ) -> "LongCatLoRA | None":
        """The changes for the layer that core calls `x`, or None if there are none or core reads them itself.

        Raises:
            ValueError: the layer's tensors do not fit each other, or are of a form that is not read here; at the last
                layer, if nothing in the file was for this network.
        """
        reading = reading_of(x, lora, loaded_keys)
        if reading is None or loaded_keys is None or not x.startswith(PREFIX):
            return None
        pieces = reading.file.pieces(x.removeprefix(PREFIX), reading.source)
        ours = () if all(reads_core(piece, x) for piece in pieces) else pieces
        used = {name for piece in ours for name in names_of(piece)}
        reading.matched |= used
        if x == LAST_LAYER:
            by_core = loaded_keys | {name for name in lora if name.startswith(f"{x}.")}
            for sentence in reading.file.report(reading.matched | by_core):
                logging.info(sentence)
        for piece in ours:
            refuse_further(piece, lora, x)
        changes = [read_change(piece, reading.source).map(Stored.tensor) for piece in ours]
        return cls(used, pack(changes)) if ours else None

    def changes(self) -> Iterator[Change[Tensor]]:
        """The changes in `weights`."""
        return unpack(self.weights)

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple[int, int, int] | None,
        function: Callable[[Tensor], Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Tensor | None = None,
    ) -> Tensor:
        """Add the changes to a weight in place.

        Raises:
            ValueError: the LoRA is for a network of other sizes.
        """
        for change in self.changes():
            rows = chunk(weight, change.rows, dim=0)
            check_size(key, change, rows.shape[0], rows.shape[1])
            cast = moved(change, weight.device, intermediate_dtype)
            difference = cast.up if cast.down is None else cast.up @ cast.down
            rows += function((strength * change.factor * difference).to(weight.dtype))
        return weight

    def h(self, x: Tensor, base_out: Tensor) -> Tensor:
        """What the changes add to a layer's output.

        Args:
            x: the layer's input `[..., in]`.
            base_out: its output `[..., out]` without them.

        Raises:
            ValueError: the LoRA is for a network of other sizes.
        """
        out = torch.zeros_like(base_out)
        for change in self.changes():
            part = chunk(out, change.rows, dim=-1)
            check_size("a layer", change, part.shape[-1], x.shape[-1])
            cast = moved(change, x.device, x.dtype)
            hidden = x if cast.down is None else torch.nn.functional.linear(x, cast.down)
            part += torch.nn.functional.linear(hidden, cast.up) * (change.factor * self.multiplier)
        return out


def reads_core(piece: Piece, x: str) -> bool:
    """Whether core reads all that a file holds for a layer: its matrices, and the factor as it is meant."""
    names = (x, f"lora_unet_{x.removeprefix(PREFIX).replace('.', '_')}")
    return piece.module in names and piece.alpha in (None, f"{piece.module}.alpha")


def refuse_further(piece: Piece, lora: Mapping[str, Tensor], x: str) -> None:
    """Raise ValueError if there are tensors beside a piece's that change what they mean, and are not read here."""
    further = [name for name in FURTHER if f"{piece.module}.{name}" in lora]
    if piece.up == f"{x}.diff":  # core takes it alone, whatever else there is
        further.append("diff")
    if further:
        raise ValueError(
            f"This LoRA has {piece.module}.{further[0]} beside matrices whose names only this pack reads, which "
            "cannot be combined. Convert it to ComfyUI's names."
        )


def pack(changes: Iterable[Change[Tensor]]) -> tuple[Any, ...]:
    """Changes as one flat tuple, of which core moves the tensors that lie at its top to another device."""
    return tuple(value for change in changes for value in (change.rows, change.factor, change.up, change.down))


def unpack(weights: tuple[Any, ...]) -> Iterator[Change[Tensor]]:
    """Inverse of `pack`; core has made plain tuples of those within."""
    for rows, factor, up, down in zip(*[iter(weights)] * 4, strict=True):
        yield Change(Rows(*rows), factor, up, down)


def moved(change: Change[Tensor], device: torch.device, dtype: torch.dtype) -> Change[Tensor]:
    """A change to be computed on a device and in a dtype."""
    return change.map(lambda matrix: comfy.model_management.cast_to_device(matrix, device, dtype))


def chunk(x: Tensor, rows: Rows, dim: int) -> Tensor:
    """A view of one of several equal parts along a dimension."""
    size = x.shape[dim] // rows.num_parts
    return x.narrow(dim, rows.part * size, size)


def check_size(key: str, change: Change[Tensor], num_rows: int, num_columns: int) -> None:
    """Raise ValueError if a change is of other sizes than the rows of the weight that it is for."""
    rows, columns = change.up.shape[0], (change.up if change.down is None else change.down).shape[1]
    if (rows, columns) != (num_rows, num_columns):
        raise ValueError(
            f"This LoRA changes {key} by a {rows} x {columns} matrix; the model has {num_rows} x {num_columns}: it was "
            "made for another model. Remove it, or load one for LongCat-Video."
        )


def register() -> None:
    """Add the adapter to core's list; a second call changes nothing."""
    if not any(adapter.name == LongCatLoRA.name for adapter in comfy.weight_adapter.adapters):
        comfy.weight_adapter.adapters.append(LongCatLoRA)
