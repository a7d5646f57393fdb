"""A LoRA file as a whole, decided once from the names of its tensors."""

import functools
from collections.abc import Set
from dataclasses import dataclass

from ..weights.stored import Source
from .names import Index, Piece, for_layer, is_for_text, names_a_layer, read


@dataclass(frozen=True)
class LoraFile:
    """What a file changes, and what of it can be for this network at all."""

    index: Index
    concerned: tuple[str, ...]
    """Names of tensors that are not for a text encoder, in order."""

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def of(names: frozenset[str]) -> "LoraFile":
        """The file whose tensors have these names."""
        return LoraFile(read(names), tuple(sorted(name for name in names if not is_for_text(name))))

    @property
    def names_our_layers(self) -> bool:
        """Whether some tensor is of a layer of the network, in whatever form."""
        return any(map(names_a_layer, self.concerned))

    def pieces(self, layer: str, source: Source) -> tuple[Piece, ...]:
        """What changes the matrix of a layer; differences of norms and the like are not read."""
        pieces = for_layer(self.index, layer)
        return tuple(piece for piece in pieces if len(source.tensors[piece.up].shape) == 2)

    def report(self, matched: Set[str]) -> list[str]:
        """Sentences on how the file was read, when all layers of the network have been asked for.

        Args:
            matched: names of the tensors that were read.

        Raises:
            ValueError: there are tensors for a network, and none was read.
        """
        num_matched = sum(name in matched for name in self.concerned)
        if self.concerned and not num_matched and self.names_our_layers:
            raise ValueError(
                "This LoRA is for layers that LongCat-Video has, but in a form that is not read, for example "
                f"{self.concerned[0]}. Convert it to lora_down and lora_up."
            )
        if self.concerned and not num_matched:
            raise ValueError(
                f"None of this LoRA's {len(self.concerned)} tensors is for LongCat-Video, for example "
                f"{self.concerned[0]}. It was made for another model: remove it, or choose one for LongCat-Video."
            )
        sentences = [f"LongCat-Video LoRA: {num_matched} of {len(self.concerned)} keys matched"]
        num_unsure = sum(piece.may_have_noted_alpha for pieces in self.index.values() for piece in pieces)
        if num_unsure:
            sentences.append(
                f"LongCat-Video LoRA: {num_unsure} pairs of lora_A and lora_B come without alpha and count with factor "
                "1. If the tool that wrote the file noted alpha in its metadata, which ComfyUI does not hand over, the "
                "LoRA is as strong as meant only when converted by scripts/prepare_weights.py"
            )
        return sentences
