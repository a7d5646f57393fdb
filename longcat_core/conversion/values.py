"""The numbers that prepare_weights.py writes, by rows: where they come from and what they become.

*Values* are where numbers come from: stored ones (`stored.Stored`), multiplied out, joined, a LoRA's differences
(`lora.changes.Difference`). *Targets* turn them into tensors of a file (`safetensors_writer.Target`). Nothing is read
but when rows are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..weights import quantization
from ..weights.advice import GET_AGAIN
from ..weights.quantization import up_to
from ..weights.safetensors_file import TensorType

CHUNK_BYTES = 4 << 20
"""Of values at a time: what a processor's cache holds is converted twice as fast as four times as much."""
HALF_STEP = {
    quantization.FP8: 16.01 / quantization.FP8_MAX,
    quantization.INT8: 0.501 / quantization.INT8_MAX,
    quantization.NVFP4: 0.25,
}
"""The most that rounding changes a number of a matrix, as a part of its largest magnitude: half of the largest step."""


# --- values -----------------------------------------------------------------------------------------------------------


class Values(Protocol):
    """Numbers of the source."""

    @property
    def type(self) -> TensorType:
        """Their dtype and shape."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of them, `[stop - start, ...]`."""


class Held(NamedTuple):
    """A small tensor in memory."""

    tensor: Tensor

    @property
    def type(self) -> TensorType:
        """Its dtype and shape."""
        return TensorType(self.tensor.dtype, tuple(self.tensor.shape))

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of its rows."""
        return self.tensor[start:stop] if self.tensor.ndim else self.tensor


class Scaled(NamedTuple):
    """A quantised matrix `[out, in]` multiplied out; the scale is fp32 with one element, or `[out, 1]`."""

    quantised: Values
    scale: Tensor

    @property
    def type(self) -> TensorType:
        """Its dtype and shape."""
        return TensorType(torch.float32, self.quantised.type.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of its rows."""
        scale = self.scale if self.scale.numel() == 1 else self.scale[start:stop]
        return self.quantised.rows(start, stop).float() * scale


class Joined(NamedTuple):
    """Tensors one below the other."""

    parts: tuple[Values, ...]

    @property
    def type(self) -> TensorType:
        """The dtype is the widest of them."""
        kinds = [part.type for part in self.parts]
        dtype = kinds[0].dtype
        for kind in kinds:
            dtype = dtype if kind.dtype == dtype else torch.float32
        return TensorType(dtype, (sum(kind.num_rows for kind in kinds), *kinds[0].shape[1:]))

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of their rows."""
        found, first = [], 0
        for part in self.parts:
            begin, end = max(start - first, 0), min(stop - first, part.type.num_rows)
            if begin < end:
                found.append(part.rows(begin, end).to(self.type.dtype))
            first += part.type.num_rows
        return torch.cat(found)


# --- targets ----------------------------------------------------------------------------------------------------------


def ranges(kind: TensorType, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows that are about `CHUNK_BYTES`, but a multiple of some rows."""
    step = max(1, CHUNK_BYTES // max(1, kind.of_rows(multiple).nbytes)) * multiple
    for start in range(0, kind.num_rows, step):
        yield start, min(start + step, kind.num_rows)


@dataclass(frozen=True)
class Plain:
    """A tensor that is stored as it is, in some dtype."""

    name: str
    values: Values
    dtype: torch.dtype

    @property
    def tensors(self) -> dict[str, TensorType]:
        """Its one tensor."""
        return {self.name: TensorType(self.dtype, self.values.type.shape)}

    def chunks(self) -> Iterator[tuple[str, Tensor]]:
        """Its rows. Raises ValueError at a number that is not finite."""
        for start, stop in ranges(self.values.type):
            rows = self.values.rows(start, stop).to(self.dtype)
            check_finite(self.name, rows)
            yield self.name, rows


@dataclass(frozen=True)
class Quantised:
    """A matrix `[out, in]` in one of ComfyUI's formats, FP8, INT8 or NVFP4 of `quantization`."""

    layer: str
    values: Values
    quant_format: str

    @property
    def tensors(self) -> dict[str, TensorType]:
        """The numbers, their scales, and the format's name."""
        rows, columns = self.values.type.shape
        numbers, scales = {
            quantization.FP8: (TensorType(torch.float8_e4m3fn, (rows, columns)), TensorType(torch.float32, ())),
            quantization.INT8: (TensorType(torch.int8, (rows, columns)), TensorType(torch.float32, (rows, 1))),
            quantization.NVFP4: (
                TensorType(torch.uint8, (up_to(rows, 16), up_to(columns, 16) // 2)),
                TensorType(
                    torch.float8_e4m3fn,
                    (up_to(rows, 128), up_to(up_to(columns, 16) // 16, 4)),
                ),
            ),
        }[self.quant_format]
        second = {f"{self.layer}.weight_scale_2": TensorType(torch.float32, ())}
        return {
            f"{self.layer}.weight": numbers,
            f"{self.layer}.weight_scale": scales,
            **(second if self.quant_format == quantization.NVFP4 else {}),
            f"{self.layer}.comfy_quant": Held(quantization.marker(self.quant_format)).type,
        }

    def chunks(self) -> Iterator[tuple[str, Tensor]]:
        """Their rows; the source is read twice but for INT8. Raises ValueError at a number that is not finite."""
        yield f"{self.layer}.comfy_quant", quantization.marker(self.quant_format)
        yield from {
            quantization.FP8: self._fp8_chunks,
            quantization.INT8: self._int8_chunks,
            quantization.NVFP4: self._nvfp4_chunks,
        }[self.quant_format]()

    def _fp8_chunks(self) -> Iterator[tuple[str, Tensor]]:
        scale = quantization.fp8_scale(self._largest())
        yield f"{self.layer}.weight_scale", scale
        for start, stop in ranges(self.values.type):
            yield f"{self.layer}.weight", quantization.quantise_fp8(self.values.rows(start, stop), scale)

    def _int8_chunks(self) -> Iterator[tuple[str, Tensor]]:
        for start, stop in ranges(self.values.type):
            numbers, scale = quantization.quantise_int8(self.values.rows(start, stop))
            check_finite(self.layer, scale)
            yield f"{self.layer}.weight", numbers
            yield f"{self.layer}.weight_scale", scale

    def _nvfp4_chunks(self) -> Iterator[tuple[str, Tensor]]:
        scale = quantization.nvfp4_scale(self._largest())
        yield f"{self.layer}.weight_scale_2", scale
        for start, stop in ranges(self.values.type, quantization.NVFP4_TILE_ROWS):
            numbers, scales = quantization.quantise_nvfp4(self.values.rows(start, stop), scale)
            yield f"{self.layer}.weight", numbers
            yield f"{self.layer}.weight_scale", scales

    def errors(self, stored: Callable[[str, int, int], Tensor]) -> tuple[float, float, float]:
        """The largest magnitude of the source, the largest difference from it, and its relative L2 norm.

        Args:
            stored: gives rows of a tensor of the file that was written.
        """
        largest = difference = squares = error_squares = 0.0
        for start, stop in ranges(self.values.type, quantization.NVFP4_TILE_ROWS):
            rows = self.values.rows(start, stop).float()
            error = rows - self._multiplied_out(stored, start, stop)
            largest = max(largest, rows.abs().max().item())
            difference = max(difference, error.abs().max().item())
            squares += rows.square().sum(dtype=torch.float64).item()
            error_squares += error.square().sum(dtype=torch.float64).item()
        return largest, difference, math.sqrt(error_squares / squares) if squares else 0.0

    def _multiplied_out(self, stored: Callable[[str, int, int], Tensor], start: int, stop: int) -> Tensor:
        weight, scale = f"{self.layer}.weight", f"{self.layer}.weight_scale"
        if self.quant_format == quantization.NVFP4:
            numbers, scales = (
                stored(weight, start, up_to(stop, 16)),
                stored(scale, start, up_to(stop, 128)),
            )
            found = quantization.dequantise_nvfp4(numbers, scales, stored(f"{scale}_2", 0, 1))
            return found[: stop - start, : self.values.type.shape[1]]
        scale_rows = (start, stop) if self.quant_format == quantization.INT8 else (0, 1)
        return stored(weight, start, stop).float() * stored(scale, *scale_rows)

    def _largest(self) -> float:
        largest = 0.0
        for start, stop in ranges(self.values.type):
            lowest, highest = torch.aminmax(self.values.rows(start, stop).float())
            check_finite(self.layer, torch.stack((lowest, highest)))
            largest = max(largest, -lowest.item(), highest.item())
        return largest


def has_same_bytes(x: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a kind are the same bit for bit."""
    return torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (x, other)))


def check_finite(name: str, rows: Tensor) -> None:
    """Raise ValueError if some number is not finite."""
    if not rows.is_floating_point() or not rows.numel() or rows.dtype.itemsize == 1:
        return
    # Anything that is not finite shows in the extremes, which cost less than a mask.
    if not all(math.isfinite(end) for end in torch.aminmax(rows)):
        raise ValueError(f"{name} has numbers that are not finite, or too large for {rows.dtype}: {GET_AGAIN}.")
