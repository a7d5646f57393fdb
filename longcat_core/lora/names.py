"""Which tensors of a LoRA file change which layer, whatever wrote the file.

A name is a prefix, a layer in any of the layouts of `layouts.py`, and what the tensor is in its convention:

    official      lora_down.weight, lora_up.weight, alpha_scale    the factor is alpha_scale; dots are ___lorahyphen___
                  lora_down.weight, lora_up.blocks.0.weight ...    a chunk of rows for each part of a fused layer
    kohya         lora_down.weight, lora_up.weight, alpha          the factor is alpha / rank
    PEFT          lora_A.weight, lora_B.weight, alpha              alpha / rank, or 1 without alpha
    FastVideo     lora_A, lora_B, lora_alpha                       lora_alpha / rank
    difference    diff                                             the whole change of the weight

A fused LoRA on a split network, and the reverse, are cut along rows (`for_layer`).

Sources: meituan-longcat/LongCat-Video `modules/lora_utils.py`; writers of the other conventions.
"""

import itertools
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..weights.layouts import PARTS, Rows, layer_of

PREFIXES = ("diffusion_model.", "transformer.", "base_model.model.", "lora_unet_", "")
TEXT_PREFIXES = ("text_encoder", "lora_te", "te_model.", "conditioner.")
OFFICIAL_PREFIX = "lora___lorahyphen___"
OFFICIAL_DOT = "___lorahyphen___"


class Piece(NamedTuple):
    """A change of some rows of a layer's weight, `factor * up @ down`, or `factor * up` without a `down`.

    Tensors are given by name and by the rows of them to take. The factor is what `alpha` holds, divided by the rank
    unless it `is_factor`, and 1 without one. `module` is the layer as the file names it.
    """

    module: str
    rows: Rows
    up: str
    up_rows: Rows = Rows()
    down: str | None = None
    down_rows: Rows = Rows()
    alpha: str | None = None
    is_factor: bool = False

    @property
    def may_have_noted_alpha(self) -> bool:
        """Whether alpha may be in the file's metadata: PEFT's tools write it there, or nowhere if it is the rank."""
        return self.alpha is None and self.up.startswith(f"{self.module}.lora_B")


class Convention(NamedTuple):
    """The last parts of names: of the second and first matrix, and of the factor."""

    up: str
    down: str | None
    alpha: str | None


CONVENTIONS = (
    Convention("lora_up.weight", "lora_down.weight", "alpha"),
    Convention("lora_B.weight", "lora_A.weight", "alpha"),
    Convention("lora_B.default.weight", "lora_A.default.weight", "alpha"),
    Convention("lora_B", "lora_A", "lora_alpha"),
    Convention("diff", None, None),
)
# What changes the meaning of a layer's matrices, and is not read here.
FURTHER = ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_mid.weight", "reshape_weight")
OFFICIAL_PART = re.compile(r"(?P<module>.+)\.lora_up\.blocks\.(?P<index>\d+)\.weight")

Index = Mapping[str, tuple[Piece, ...]]
"""Pieces by the name of the layer that a file names, in the network's words, fused or not."""


def read(tensors: frozenset[str]) -> Index:
    """What the tensors of a LoRA file change."""
    index: dict[str, tuple[Piece, ...]] = {}
    for name in sorted(tensors):
        module, pieces = _whole(name, tensors) or _official_parts(name, tensors) or ("", ())
        layer = _layer(module)
        if layer:
            index[layer] = index.get(layer, ()) + pieces
    return index


def _whole(name: str, tensors: frozenset[str]) -> tuple[str, tuple[Piece, ...]] | None:
    for convention in CONVENTIONS:
        module = name.removesuffix(f".{convention.up}")
        down = convention.down and f"{module}.{convention.down}"
        if module != name and (down is None or down in tensors):
            alpha, is_factor = _alpha(module, convention, tensors)
            return module, (Piece(module, Rows(), name, down=down, alpha=alpha, is_factor=is_factor),)
    return None


def _official_parts(name: str, tensors: frozenset[str]) -> tuple[str, tuple[Piece, ...]] | None:
    match = OFFICIAL_PART.fullmatch(name)
    if not match or match["index"] != "0" or f"{match['module']}.lora_down.weight" not in tensors:
        return None
    module = match["module"]
    alpha, is_factor = _alpha(module, CONVENTIONS[0], tensors)
    numbered = (f"{module}.lora_up.blocks.{index}.weight" for index in itertools.count())
    ups = list(itertools.takewhile(tensors.__contains__, numbered))
    return module, tuple(
        Piece(module, rows, up, Rows(), f"{module}.lora_down.weight", rows, alpha, is_factor)
        for rows, up in ((Rows(index, len(ups)), up) for index, up in enumerate(ups))
    )


def _alpha(module: str, convention: Convention, tensors: frozenset[str]) -> tuple[str | None, bool]:
    for name, is_factor in ((f"{module}.alpha_scale", True), (f"{module}.{convention.alpha}", False)):
        if name in tensors:
            return name, is_factor
    return None, False


def _layer(module: str) -> str | None:
    if module.startswith(OFFICIAL_PREFIX):
        return layer_of(module.removeprefix(OFFICIAL_PREFIX).replace(OFFICIAL_DOT, "."))
    prefix = next(prefix for prefix in PREFIXES if module.startswith(prefix))
    return layer_of(module.removeprefix(prefix))


def for_layer(index: Index, layer: str) -> tuple[Piece, ...]:
    """Pieces for a layer of the network, which may be fused where the file is not, or the reverse."""
    block, name = _block_and_name(layer)
    for fused, parts in PARTS.items():
        if name == fused:
            apart = ((Rows(i, len(parts)), index.get(f"{block}{part}", ())) for i, part in enumerate(parts))
            return index.get(layer, ()) + tuple(piece._replace(rows=rows) for rows, pieces in apart for piece in pieces)
        if name in parts:
            rows = Rows(parts.index(name), len(parts))
            return index.get(layer, ()) + tuple(
                cut for piece in index.get(f"{block}{fused}", ()) for cut in _cut(piece, rows)
            )
    return index.get(layer, ())


def _block_and_name(layer: str) -> tuple[str, str]:
    match = re.fullmatch(r"(blocks\.\d+\.)?(.+)", layer)
    assert match, "any name matches"
    return match[1] or "", match[2]


def _cut(piece: Piece, rows: Rows) -> tuple[Piece, ...]:
    """The share of a fused layer's piece that changes some of its rows."""
    if piece.rows == Rows():
        return (piece._replace(up_rows=rows),)
    return (piece._replace(rows=Rows()),) if piece.rows == rows else ()


def names_of(piece: Piece) -> set[str]:
    """The tensors of a piece."""
    return {name for name in (piece.up, piece.down, piece.alpha) if name is not None}


def names_a_layer(tensor: str) -> bool:
    """Whether a tensor is of some layer of the network, in whatever form."""
    parts = tensor.split(".")
    return any(_layer(".".join(parts[:end])) for end in range(len(parts) - 1, 0, -1))


def is_for_text(tensor: str) -> bool:
    """Whether a tensor of a LoRA file is for a text encoder."""
    return tensor.startswith(TEXT_PREFIXES)
