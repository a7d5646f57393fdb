"""LoRA files of every convention for ComfyUI's own LoRA nodes.

ComfyUI asks each of its weight adapters, for each layer of a model, what a file holds for it. The one that is added
here answers for LongCat-Video where core's do not know the name; from then on core treats it as any other, merged into
the weights or beside them (*bypass*), with strengths, stacking, hooks and unloading.

Source of the mathematics: meituan-longcat/LongCat-Video, `LoRAModule` and `LoRANetwork` in `modules/lora_utils.py`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import comfy.model_management
import comfy.weight_adapter
import torch
from torch import Tensor

from ..lora import names as lora_names
from ..lora.names import Piece, Rows

PREFIX = "diffusion_model."
# Core asks for layers in the order of the network: this one, before all blocks, is LongCat-Video's alone.
FAMILY_LAYER = "diffusion_model.y_embedder.y_proj.0"
LAST_LAYER = "diffusion_model.final_layer.linear"
# Left among the names that core collects while it reads one file, which hold nothing else that lasts as long.
IS_LONGCAT = "longcat_video"


class Change(NamedTuple):
    """What is added to some rows of a weight: `factor * up @ down`, or `factor * up`."""

    rows: Rows
    factor: float
    down: Tensor | None
    up: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of what is added."""
        return self.up.shape[0], (self.up if self.down is None else self.down).shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Change":
        """The same, computed on a device and in a dtype."""
        up = comfy.model_management.cast_to_device(self.up, device, dtype)
        down = None if self.down is None else comfy.model_management.cast_to_device(self.down, device, dtype)
        return Change(self.rows, self.factor, down, up)


class LongCatLoRA(comfy.weight_adapter.WeightAdapterBase):
    """The changes that a LoRA file makes to one layer.

    `weights` is flat, as core moves its tensors between devices: for each change its rows, factor, down and up.
    """

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
        seen = set() if loaded_keys is None else loaded_keys
        if x == FAMILY_LAYER:
            seen.add(IS_LONGCAT)
        if IS_LONGCAT not in seen or not x.startswith(PREFIX):
            return None
        pieces = lora_names.for_layer(lora_names.read(frozenset(lora)), x.removeprefix(PREFIX))
        pieces = tuple(piece for piece in pieces if lora[piece.up].ndim == 2)
        ours = () if all(reads_core(piece, x) for piece in pieces) else pieces
        used = {name for piece in ours for name in lora_names.names_of(piece)}
        if x == LAST_LAYER:
            report(lora, seen | used | {name for name in lora if name.startswith(f"{x}.")})
        weights = tuple(value for piece in ours for value in read_change(piece, lora, x))
        return cls(used, weights) if ours else None

    def changes(self) -> Iterator[Change]:
        """The changes in `weights`."""
        for start in range(0, len(self.weights), len(Change._fields)):
            rows, factor, down, up = self.weights[start : start + len(Change._fields)]
            yield Change(Rows(*rows), factor, down, up)

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
            if change.size != rows.shape:
                raise ValueError(wrong_size(key, change.size, tuple(rows.shape)))
            _, factor, down, up = change.to(weight.device, intermediate_dtype)
            difference = up if down is None else up @ down
            rows += function((strength * factor * difference).to(weight.dtype))
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
            if change.size != (part.shape[-1], x.shape[-1]):
                raise ValueError(wrong_size("a layer", change.size, (part.shape[-1], x.shape[-1])))
            _, factor, down, up = change.to(x.device, x.dtype)
            hidden = x if down is None else torch.nn.functional.linear(x, down)
            part += torch.nn.functional.linear(hidden, up) * (factor * self.multiplier)
        return out


def reads_core(piece: Piece, x: str) -> bool:
    """Whether core reads all that a file holds for a layer: its matrices, and the factor as it is meant."""
    names = (x, f"lora_unet_{x.removeprefix(PREFIX).replace('.', '_')}")
    return piece.module in names and piece.alpha in (None, f"{piece.module}.alpha")


def read_change(piece: Piece, lora: Mapping[str, Tensor], x: str) -> Change:
    """A piece with its tensors.

    Raises:
        ValueError: they do not fit each other, or there are further ones that are not read here.
    """
    further = [name for name in lora_names.FURTHER if f"{piece.module}.{name}" in lora]
    if piece.up == f"{x}.diff":  # core takes it alone, whatever else there is
        further.append("diff")
    if further:
        raise ValueError(
            f"This LoRA has {piece.module}.{further[0]} beside matrices whose names only this pack reads, which "
            "cannot be combined. Convert it to ComfyUI's names."
        )
    up, down = lora[piece.up], None if piece.down is None else lora[piece.down]
    alpha = None if piece.alpha is None else lora[piece.alpha]
    parts = [(up, piece.up_rows), *([] if down is None else [(down, piece.down_rows)])]
    are_whole = all(matrix.ndim == 2 and matrix.shape[0] % rows.num_parts == 0 for matrix, rows in parts)
    if not are_whole or (alpha is not None and alpha.numel() != 1):
        raise ValueError(damaged(piece.module))
    up, *downs = (chunk(matrix, rows, dim=0) for matrix, rows in parts)
    if downs and up.shape[1] != downs[0].shape[0]:
        raise ValueError(damaged(piece.module))
    rank = 1 if piece.is_factor or down is None else down.shape[0]
    return Change(piece.rows, 1.0 if alpha is None else float(alpha) / rank, downs[0] if downs else None, up)


def damaged(module: str) -> str:
    """The sentence for tensors that do not fit each other."""
    return f"The tensors of this LoRA for {module} do not fit each other: the file is damaged, download it again."


def chunk(x: Tensor, rows: Rows, dim: int) -> Tensor:
    """A view of one of several equal parts along a dimension."""
    size = x.shape[dim] // rows.num_parts
    return x.narrow(dim, rows.part * size, size)


def wrong_size(key: str, given: tuple[int, ...], needed: tuple[int, ...]) -> str:
    """The sentence for a LoRA of other sizes."""
    return (
        f"This LoRA changes {key} by a {given[0]} x {given[1]} matrix; the model has {needed[0]} x {needed[1]}: it was "
        "made for another model. Remove it, or load one for LongCat-Video."
    )


def report(lora: Mapping[str, Tensor], matched: set[str]) -> None:
    """Log how many of a file's tensors are for this network.

    Raises:
        ValueError: there are some, and none is.
    """
    concerned = [name for name in lora if not lora_names.is_for_text(name)]
    num_matched = sum(name in matched for name in concerned)
    if concerned and not num_matched and any(map(lora_names.names_a_layer, concerned)):
        raise ValueError(
            "This LoRA is for layers that LongCat-Video has, but in a form that is not read, for example "
            f"{concerned[0]}. Convert it to lora_down and lora_up."
        )
    if concerned and not num_matched:
        raise ValueError(
            f"None of this LoRA's {len(concerned)} tensors is for LongCat-Video, for example {concerned[0]}. It was "
            "made for another model: remove it, or choose one for LongCat-Video."
        )
    logging.info("LongCat-Video LoRA: %d of %d keys matched", num_matched, len(concerned))


def register() -> None:
    """Add the adapter to core's list; a second call changes nothing."""
    if not any(adapter.name == LongCatLoRA.name for adapter in comfy.weight_adapter.adapters):
        comfy.weight_adapter.adapters.append(LongCatLoRA)
