"""What a LoRA adds to some rows of a weight: the meaning of a piece of a file, from whichever source it comes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..weights.advice import GET_AGAIN
from ..weights.layouts import Rows
from ..weights.stored import Source, Stored, json_object
from .names import Piece

ADAPTER_METADATA = "lora_adapter_metadata"
ADAPTER_EXCEPTIONS = ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora")

Matrix = TypeVar("Matrix")
Other = TypeVar("Other")


@dataclass(frozen=True)
class Change(Generic[Matrix]):
    """What is added to some rows of a weight: `factor * up @ down`, or `factor * up`.

    The matrices are tensors or say where they are stored: up `[rows, rank]` and down `[rank, in]`, or up `[rows, in]`.
    """

    rows: Rows
    factor: float
    up: Matrix
    down: Matrix | None

    def map(self, convert: "Callable[[Matrix], Other]") -> "Change[Other]":
        """The same with other matrices."""
        return Change(self.rows, self.factor, convert(self.up), None if self.down is None else convert(self.down))


def read_change(piece: Piece, source: Source) -> Change[Stored]:
    """The change that a piece of a file makes.

    Raises:
        ValueError: its tensors do not fit each other, or the metadata has no factor that is one for all layers.
    """
    up = Stored(source, piece.up, piece.up_rows)
    down = None if piece.down is None else Stored(source, piece.down, piece.down_rows)
    matrices = [matrix for matrix in (up, down) if matrix is not None]
    whole = [source.tensors[matrix.name] for matrix in matrices]
    are_cut_evenly = all(
        kind.num_rows % matrix.part.num_parts == 0 for kind, matrix in zip(whole, matrices, strict=True)
    )
    are_matrices = all(len(kind.shape) == 2 for kind in whole)
    if not are_cut_evenly or not are_matrices or (down and up.type.shape[1] != down.type.shape[0]):
        what = " and ".join(f"{matrix.name} is {list(matrix.type.shape)}" for matrix in matrices)
        raise ValueError(damaged(piece.module, what))
    if piece.alpha is not None and source.tensors[piece.alpha].num_elements != 1:
        what = f"{piece.alpha} is {list(source.tensors[piece.alpha].shape)} instead of one number"
        raise ValueError(damaged(piece.module, what))
    return Change(piece.rows, _factor(piece, source), up, down)


def _factor(piece: Piece, source: Source) -> float:
    if piece.down is None:
        return 1.0
    if piece.alpha is None:
        return _factor_of_metadata(source.metadata)
    rank = 1 if piece.is_factor else source.tensors[piece.down].num_rows
    return float(source.tensor(piece.alpha)) / rank


def _factor_of_metadata(metadata: Mapping[str, str]) -> float:
    """The factor of all layers, which diffusers notes beside the tensors; 1 if nothing is noted."""
    if ADAPTER_METADATA not in metadata:
        return 1.0
    noted = json_object(ADAPTER_METADATA, metadata[ADAPTER_METADATA])
    settings = {name.rpartition(".")[2]: value for name, value in noted.items()}
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    is_uniform = not any(settings.get(name) for name in ADAPTER_EXCEPTIONS)
    if is_uniform and isinstance(rank, int | float) and isinstance(alpha, int | float) and rank > 0:
        return alpha / rank
    raise ValueError(f"its {ADAPTER_METADATA} is not one rank and one alpha for all layers: use it as it is.")


def damaged(module: str, what: str) -> str:
    """The sentence for tensors of a layer that do not fit each other."""
    return f"The tensors of this LoRA for {module} do not fit each other, as {what}: {GET_AGAIN}."
