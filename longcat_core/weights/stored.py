"""What a file holds for a layer: its numbers and, if they are quantised, their scales and a marker.

Tensors come from a *source*, which is a state dict in memory or files that are read row by row: the loader and the
converter read a file by the same rules. A layer is judged by names, shapes and dtypes alone.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import quantization
from .advice import GET_AGAIN
from .layouts import Rows, is_matrix, to_network
from .safetensors_file import TensorType

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, *FLOAT8)
INTEGERS = (torch.int8, torch.uint8)
FOREIGN = frozenset({"weight_int8", "scale_weight", "scale_input"})
WRONG_SHAPE = "of a wrong shape"
WRONG_DTYPE = "of a wrong dtype"
NO_SCALE = "without a scale"
WRONG_SCALE = "scales of a wrong shape"
PROBLEMS = (WRONG_SHAPE, WRONG_DTYPE, NO_SCALE, WRONG_SCALE)
"""What can be wrong with a layer's tensors, in the order in which it is told."""


class Source(Protocol):
    """Tensors by name."""

    @property
    def tensors(self) -> Mapping[str, TensorType]:
        """What they are, without reading them."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Words beside the tensors, as far as they are known."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor `[stop - start, ...]`; a scalar is row 0 of itself, `[]`."""

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A state dict as ComfyUI hands it over: without metadata."""

    state: Mapping[str, Tensor]

    @functools.cached_property
    def tensors(self) -> dict[str, TensorType]:
        """What they are."""
        return {name: type_of(tensor) for name, tensor in self.state.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """None."""
        return {}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A view of rows of a tensor."""
        tensor = self.state[name]
        return tensor[start:stop] if tensor.ndim else tensor

    def tensor(self, name: str) -> Tensor:
        """A tensor itself."""
        return self.state[name]


@dataclass(frozen=True, eq=False)
class Renamed:
    """Some tensors of another source by new names."""

    source: Source
    names: Mapping[str, str]
    """The source's names by the new ones."""

    @functools.cached_property
    def tensors(self) -> dict[str, TensorType]:
        """What they are."""
        return {name: self.source.tensors[old] for name, old in self.names.items()}

    @property
    def metadata(self) -> Mapping[str, str]:
        """The source's."""
        return self.source.metadata

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor."""
        return self.source.rows(self.names[name], start, stop)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        return self.source.tensor(self.names[name])


class Stored(NamedTuple):
    """A tensor of a source, or one of `part.num_parts` equal chunks of its rows."""

    source: Source
    name: str
    part: Rows = Rows()

    @property
    def type(self) -> TensorType:
        """Dtype and shape of the chunk."""
        whole = self.source.tensors[self.name]
        return whole.of_rows(whole.num_rows // self.part.num_parts)

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of the chunk's rows."""
        first = self.part.part * self.type.num_rows
        return self.source.rows(self.name, first + start, first + stop)

    def tensor(self) -> Tensor:
        """The whole chunk."""
        return self.rows(0, self.type.num_rows)


class Problem(NamedTuple):
    """What is wrong with a tensor: one of PROBLEMS, its name in the file, and how it is."""

    kind: str
    tensor: str
    detail: str = ""


class StoredLayer(NamedTuple):
    """A layer of a DiT as a file holds it."""

    name: str
    """In the network."""
    tensors: Mapping[str, str]
    """Names in the file by what they are: `weight` or `weight_int8`, `bias`, and those of `quantization.SCALES`."""
    types: Mapping[str, TensorType]
    """The same tensors' dtypes and shapes."""

    @property
    def numbers(self) -> str:
        """What the tensor of the weight's numbers is called; it need not be there."""
        return "weight_int8" if "weight_int8" in self.tensors else "weight"

    @property
    def scale_name(self) -> str | None:
        """What the tensor of the scale is called, if there is one."""
        if "scale_weight" in self.tensors:
            return "scale_weight"
        return "weight_scale" if "weight_scale" in self.tensors else None

    @property
    def is_foreign(self) -> bool:
        """Whether it is quantised in a form that ComfyUI does not know: by names of another tool, or without marker."""
        if self.scale_name is None or quantization.SECOND_SCALE in self.tensors:
            return False
        return bool(FOREIGN & self.tensors.keys()) or quantization.COMFY_MARKER not in self.tensors

    def problems(self, shapes: Mapping[str, tuple[int, ...]], are_others_scaled: bool) -> Iterator[Problem]:
        """What is wrong with the tensors that are there.

        Args:
            shapes: of the network's parameters, `weight` and `bias`; empty for a layer that the network does not have.
            are_others_scaled: whether some layer of the file has a scale: then fp8 matrices without one are wrong.
        """
        for parameter, shape in shapes.items():
            held = self.numbers if parameter == "weight" else parameter
            if held not in self.tensors:
                continue
            found, needed = self.types[held], self._stored_shape(parameter, shape)
            if found.shape != needed:
                detail = f" with {list(found.shape)} instead of {list(needed)}"
                yield Problem(WRONG_SHAPE, self.tensors[held], detail)
            if found.is_plain and found.dtype not in (*FLOATS, *(INTEGERS if parameter == "weight" else ())):
                yield Problem(WRONG_DTYPE, self.tensors[held], f" as {found.dtype}")
        if self._lacks_scale(are_others_scaled):
            yield Problem(NO_SCALE, self.tensors[self.numbers])
        if self.scale_name and not self._scale_fits(self.types[self.scale_name]):
            shape = self.types[self.scale_name].shape
            yield Problem(WRONG_SCALE, self.tensors[self.scale_name], f" with {list(shape)}")

    def _stored_shape(self, parameter: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the stored numbers: nvfp4 packs two into a byte and fills both sides up to multiples of 16."""
        if parameter != "weight" or len(shape) != 2 or quantization.SECOND_SCALE not in self.tensors:
            return shape
        return tuple(quantization.up_to(size, 16) // divisor for size, divisor in zip(shape, (1, 2), strict=True))

    def _lacks_scale(self, are_others_scaled: bool) -> bool:
        """Whether a scale is needed: by integers, by what is marked as quantised, by fp8 matrices among scaled ones.

        Plain fp8, where no weight has a scale, needs none, nor do the small layers of a model that was saved in fp8.
        """
        if self.scale_name or self.numbers not in self.tensors:
            return False
        kind = self.types[self.numbers]
        is_scaled_fp8 = are_others_scaled and kind.dtype in FLOAT8 and is_matrix(self.name)
        needs_one = kind.is_plain and (kind.dtype in INTEGERS or is_scaled_fp8)
        return needs_one or quantization.COMFY_MARKER in self.tensors

    def _scale_fits(self, scale: TensorType) -> bool:
        """Whether a scale is one number, one for each row of an int8 matrix, or one for 16 numbers of an nvfp4 matrix.

        Those of mxfp8 are left to ComfyUI.
        """
        weight = self.types.get(self.numbers)
        if weight is None or (scale.dtype == torch.float8_e8m0fnu and quantization.COMFY_MARKER in self.tensors):
            return True
        if quantization.SECOND_SCALE in self.tensors and len(weight.shape) == 2:  # tiles of 128 rows and 4 columns
            rows, bytes_per_row = weight.shape
            return scale.shape == (quantization.up_to(rows, 128), quantization.up_to(bytes_per_row, 32) // 8)
        rows = weight.num_rows if weight.dtype == torch.int8 else 1
        return scale.num_elements == 1 or scale.shape in ((rows,), (rows, 1))

    def settings(self, source: Source) -> dict[str, Any]:
        """What the layer's own marker says; empty without one.

        Raises:
            ValueError: it is not a JSON object.
        """
        name = self.tensors.get(quantization.COMFY_MARKER)
        return {} if name is None else json_object(name, bytes(source.tensor(name).tolist()))

    def scale(self, source: Source) -> Tensor:
        """The scale, fp32 with one element, or `[out, 1]`."""
        assert self.scale_name is not None, "a quantised layer has a scale"
        scale = source.tensor(self.tensors[self.scale_name]).float()
        return scale if scale.numel() == 1 else scale.reshape(-1, 1)

    def comfy_form(self, source: Source) -> dict[str, str | Tensor]:
        """A layer in fp8 or int8 as ComfyUI has it: what is kept by its name in the source, what is small made anew.

        Files with `scaled_fp8` are read as ComfyUI reads them: the length of that tensor says how to multiply.
        """
        form: dict[str, str | Tensor] = {"weight": self.tensors[self.numbers], "weight_scale": self.scale(source)}
        for name in ("scale_input", "input_scale"):
            if name in self.tensors:
                form["input_scale"] = source.tensor(self.tensors[name]).float()
        return form | {quantization.COMFY_MARKER: self._marker(source)}

    def _marker(self, source: Source) -> str | Tensor:
        if quantization.COMFY_MARKER in self.tensors:
            return self.tensors[quantization.COMFY_MARKER]
        if self.types[self.numbers].dtype == torch.int8:
            return quantization.marker(quantization.INT8)
        of_file = source.tensors.get(quantization.MARKER)
        if of_file is not None and of_file.shape == (1,):
            return quantization.marker(quantization.FP8)
        return quantization.marker(quantization.FP8, **{quantization.FULL_PRECISION: True})

    def for_network(self, source: Source) -> dict[str, Tensor]:
        """Its tensors as ComfyUI loads them into the network, by the network's names.

        What is not quantised, or is in ComfyUI's form, is left as it is. The official int8 form also quantises the few
        layers that are no matrices: they are multiplied out, as ComfyUI would round their inputs too.
        """
        form: dict[str, str | Tensor] = {
            parameter: name for parameter, name in self.tensors.items() if not self.is_foreign or parameter == "bias"
        }
        if self.is_foreign and (is_matrix(self.name) or self.numbers == "weight"):
            form |= self.comfy_form(source)
        elif self.is_foreign:
            numbers = source.tensor(self.tensors[self.numbers])
            form["weight"] = (numbers * self.scale(source)).to(torch.bfloat16)
        return {
            f"{self.name}.{parameter}": source.tensor(value) if isinstance(value, str) else value
            for parameter, value in form.items()
        }


def type_of(tensor: Tensor) -> TensorType:
    """What a tensor is. GGUF's are of a type of their own, which alone can read their bytes."""
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return TensorType(tensor.dtype, tuple(tensor.shape), is_plain)


def layers_of(tensors: Mapping[str, TensorType], layout: str) -> dict[str, StoredLayer]:
    """The layers of a DiT in a layout, by the network's names; others by their own."""
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        layer, _, parameter = name.rpartition(".")
        found.setdefault(layer, {})[parameter] = name
    named = {to_network(f"{layer}.weight", layout).removesuffix(".weight"): names for layer, names in found.items()}
    return {
        layer: StoredLayer(layer, names, {parameter: tensors[name] for parameter, name in names.items()})
        for layer, names in named.items()
    }


def json_object(name: str, text: str | bytes) -> dict[str, Any]:
    """A JSON object that a file holds under a name.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"its {name} is not JSON ({error}): {GET_AGAIN}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"its {name} is a {type(found).__name__} instead of an object: {GET_AGAIN}.")
    return found
