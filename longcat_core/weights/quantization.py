"""Quantised weights in ComfyUI's own form, and the way to it from plain ones.

A quantised layer `L` in ComfyUI's form:

                      float8_e4m3fn    int8_tensorwise    nvfp4
    L.weight          fp8 [out, in]    int8 [out, in]     two in a byte
    L.weight_scale    fp32 []          fp32 [out, 1]      fp8, one for 16 in a row; swizzled
    L.weight_scale_2                                      fp32 []
    L.comfy_quant     uint8, the bytes of a JSON object with the format's name

A weight is the stored number times its scales.

Only the large matrices of attention and feed-forward are quantised: 95 % of the parameters. Rounding is to nearest, so
that the same weights always give the same bytes.

Sources: ComfyUI `comfy/ops.py` and `comfy/utils.py`; meituan-longcat/LongCat-Video `modules/quantization.py`.
"""

import json
from typing import Any

import torch
from torch import Tensor

FP8, INT8, NVFP4 = "float8_e4m3fn", "int8_tensorwise", "nvfp4"
FP8_MAX = 448.0
INT8_MAX = 127.0
FP4_MAX = 6.0
NVFP4_TILE_ROWS = 128
"""Scales of nvfp4 are stored in tiles of so many rows, so that matrices are quantised by multiples of them."""
SMALLEST = 1e-8
MARKER = "scaled_fp8"
"""A tensor of this name says that `scale_weight` belongs to fp8 weights; ComfyUI reads such files by itself."""
COMFY_MARKER, SECOND_SCALE = "comfy_quant", "weight_scale_2"
SCALES = frozenset({"weight_scale", SECOND_SCALE, "input_scale", "scale_weight", "scale_input", COMFY_MARKER})
"""What a quantised layer has beside its numbers, in ComfyUI's form and in the older one."""
FULL_PRECISION = "full_precision_matrix_mult"
"""What a marker says of weights that are multiplied out before they are used."""


def marker(quant_format: str, **settings: Any) -> Tensor:
    """The `comfy_quant` tensor of a layer."""
    return torch.frombuffer(bytearray(json.dumps({"format": quant_format, **settings}).encode()), dtype=torch.uint8)


def fp8_scale(largest: float) -> Tensor:
    """The scale for a matrix whose largest magnitude is `largest`, fp32 []."""
    return torch.tensor(max(largest, SMALLEST) / FP8_MAX, dtype=torch.float32)


def quantise_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """Rows of a matrix to fp8 with the scale of the whole matrix."""
    return (weight.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a matrix to int8, and their scales, fp32 `[rows, 1]`."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST) / INT8_MAX
    return (weight / scale).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def nvfp4_scale(largest: float) -> Tensor:
    """The second scale for a matrix whose largest magnitude is `largest`, fp32 []."""
    return torch.tensor(max(largest, SMALLEST) / (FP8_MAX * FP4_MAX), dtype=torch.float32)


def quantise_nvfp4(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a matrix to nvfp4 with the second scale of the whole matrix, by comfy-kitchen.

    Args:
        weight: `[rows, in]`; rows are a multiple of `NVFP4_TILE_ROWS`, or the last of the matrix.
        scale: from `nvfp4_scale`.

    Returns:
        Two numbers in a byte `[rows, in / 2]`, both sides filled up to multiples of 16, and the scales of each 16.

    Raises:
        ImportError: comfy-kitchen is not installed; ComfyUI requires it.
    """
    import comfy_kitchen

    return comfy_kitchen.quantize_nvfp4(weight.float(), scale, pad_16x=True)


def dequantise_nvfp4(quantised: Tensor, block_scales: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `quantise_nvfp4`, fp32, as far as rounding allows; the filling is still there.

    Raises:
        ImportError: comfy-kitchen is not installed.
    """
    import comfy_kitchen

    return comfy_kitchen.dequantize_nvfp4(quantised, scale, block_scales, torch.float32)


def up_to(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple
