"""safetensors files, read a few rows at a time (`safetensors_writer.py` writes them so).

The `safetensors` library maps a file into memory, where every page that was touched counts, and writes tensors that are
all in memory. Here nothing but the rows at hand is, so that files of any size are converted in little memory.

A file is the length of its header (8 bytes, little-endian), the header (a JSON object, padded with spaces), and the
data: tensors one behind the other, without holes.

Source: the format's description in huggingface/safetensors.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from .advice import GET_AGAIN

# From the last in a file that `save_file` writes to the first.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8
MAX_HEADER = 100_000_000  # bytes
METADATA = "__metadata__"
SHOWN_NAME = 100  # characters


class TensorType(NamedTuple):
    """What a tensor is, without its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    is_plain: bool = True
    """Whether PyTorch reads the numbers: those of GGUF, in memory, only their own type does."""

    @property
    def num_elements(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the numbers."""
        return self.num_elements * self.dtype.itemsize

    @property
    def num_rows(self) -> int:
        """Length of the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    def of_rows(self, count: int) -> "TensorType":
        """The type of some of the rows."""
        return TensorType(self.dtype, (count, *self.shape[1:]) if self.shape else (), self.is_plain)


class Header(NamedTuple):
    """What a file says about its data."""

    tensors: dict[str, TensorType]
    positions: dict[str, int]
    """Where in the file each tensor begins, in bytes."""
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a file, every line of which is checked against the others and the file's size.

    Raises:
        ValueError: there is no such file, or it is damaged or no safetensors file; says how.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing or no file: {GET_AGAIN}.")
    with path.open("rb") as file:
        try:
            return _parse(*_read_json(file, path.stat().st_size))
        except ValueError as error:
            raise ValueError(f"{path} is damaged, incomplete or no safetensors file: {error}; {GET_AGAIN}.") from error


def _read_json(file: BinaryIO, file_size: int) -> tuple[Any, int, int]:
    """The header, the position of the data and their size."""
    if file_size < LENGTH_BYTES:
        raise ValueError(f"it is {file_size} bytes long, too short for the length of a header")
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    begin = LENGTH_BYTES + length
    if length > MAX_HEADER:
        raise ValueError(f"it announces a header of {length:,} bytes, where {MAX_HEADER:,} are allowed")
    if begin > file_size:
        raise ValueError(f"it is {file_size:,} bytes long but announces a header of {length:,}")
    try:
        return json.loads(file.read(length).decode(), object_pairs_hook=_unique), begin, file_size - begin
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its header has {_shown(twice)} twice")
    return found


def _parse(header: Any, begin: int, data_size: int) -> Header:
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__} instead of an object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not words")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    position = 0
    for name, (_, start, end) in sorted(entries.items(), key=lambda entry: entry[1][1:]):
        if start != position:
            what = "overlaps the tensor before it" if start < position else f"has {start - position:,} bytes before it"
            raise ValueError(f"{_shown(name)} {what}")
        position = end
    if position != data_size:
        raise ValueError(f"its tensors take {position:,} bytes where the file has {data_size:,}")
    return Header(
        {name: kind for name, (kind, _, _) in entries.items()},
        {name: begin + start for name, (_, start, _) in entries.items()},
        metadata,
    )


def _entry(name: str, entry: Any) -> tuple[TensorType, int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{_shown(name)} has no dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{_shown(name)} is of the unknown dtype {_shown(dtype)}")
    if not _are_sizes(shape):
        raise ValueError(f"{_shown(name)} has the impossible shape {_shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{_shown(name)} has the impossible data_offsets {_shown(offsets)}")
    kind = TensorType(DTYPES[dtype], tuple(shape))
    if kind.nbytes != offsets[1] - offsets[0]:
        raise ValueError(f"{_shown(name)} takes {offsets[1] - offsets[0]:,} bytes where {kind.nbytes:,} are needed")
    return kind, *offsets


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def _shown(given: Any) -> str:
    text = str(given)
    return text if len(text) <= SHOWN_NAME else f"{text[:SHOWN_NAME]}..."


class Reader:
    """The tensors of one or several files, whose headers are checked when it is made.

    Raises:
        ValueError: as `read_header`, or two files hold a tensor of the same name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.tensors: dict[str, TensorType] = {}
        self.metadata: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._files: dict[Path, BinaryIO] = {}
        for path in self.paths:
            header = read_header(path)
            for name in header.tensors.keys() & self.tensors.keys():
                raise ValueError(f"{path} and {self._places[name][0]} both hold {name}: {GET_AGAIN}.")
            self.tensors |= header.tensors
            self.metadata |= header.metadata
            self._places |= {name: (path, position) for name, position in header.positions.items()}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor `[stop - start, ...]`; a scalar is row 0 of itself, `[]`.

        Raises:
            ValueError: the file has become shorter.
            OSError: it cannot be read.
        """
        kind = self.tensors[name]
        rows = kind.of_rows(stop - start)
        path, position = self._places[name]
        # Without a buffer of its own, the file is read straight into the tensor.
        file = self._files.setdefault(path, self._files.get(path) or path.open("rb", buffering=0))
        file.seek(position + kind.of_rows(start).nbytes if kind.shape else position)
        buffer = torch.empty(rows.nbytes, dtype=torch.uint8)
        view = memoryview(buffer.numpy())
        while view:
            count = file.readinto(view)  # type: ignore[attr-defined] # an unbuffered file has it
            if not count:
                raise ValueError(f"{path} became shorter while it was read: {GET_AGAIN}.")
            view = view[count:]
        return buffer.view(rows.dtype).reshape(rows.shape)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor.

        Raises:
            ValueError, OSError: as `rows`.
        """
        return self.rows(name, 0, self.tensors[name].num_rows)

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._files:
            self._files.popitem()[1].close()
