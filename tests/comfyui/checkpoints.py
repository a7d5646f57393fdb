"""Synthetic checkpoints of every layout that people have, made of an official one."""

from collections.abc import Mapping

import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor

from longcat_core.weights import layouts, quantization

StateDict = dict[str, Tensor]


def split(official: Mapping[str, Tensor]) -> StateDict:
    """Each fused matrix cut into its parts."""
    apart: StateDict = {}
    for name, tensor in official.items():
        layer, _, parameter = name.rpartition(".")
        fused = next((f for f in layouts.PARTS if layer.endswith(f".{f}")), None)
        if fused is None:
            apart[name] = tensor
            continue
        parts = layouts.PARTS[fused]
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            apart[f"{layer.removesuffix(fused)}{part}.{parameter}"] = rows.clone()
    return apart


def named(official: Mapping[str, Tensor], layout: str) -> StateDict:
    """The same weights in another layout."""
    weights = split(official) if layouts.is_split(layout) else official
    return {layouts.from_network(name, layout): tensor for name, tensor in weights.items()}


def is_quantised(name: str) -> bool:
    """Whether a tensor of the network is one that files quantise."""
    layer, _, parameter = name.rpartition(".")
    return parameter == "weight" and layouts.is_matrix(layer)


def scaled_fp8(official: Mapping[str, Tensor], marker: bool = True) -> StateDict:
    """Wan-like names, fp8 with `scale_weight`, as the single files for ComfyUI are quantised."""
    weights: StateDict = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if marker else {}
    for name, tensor in split(official).items():
        foreign = layouts.from_network(name, layouts.WAN)
        if is_quantised(name):
            scale = quantization.fp8_scale(float(tensor.abs().max()))
            weights[foreign] = quantization.quantise_fp8(tensor, scale)
            weights[foreign.replace(".weight", ".scale_weight")] = scale.view(1)
        else:
            weights[foreign] = tensor
    return weights


def official_int8(official: Mapping[str, Tensor]) -> StateDict:
    """The official int8 layout: every linear layer but the last one."""
    weights: StateDict = {}
    for name, tensor in official.items():
        layer, _, parameter = name.rpartition(".")
        if parameter == "weight" and tensor.ndim == 2 and layer != "final_layer.linear":
            weights[f"{name}_int8"], scale = quantization.quantise_int8(tensor)
            weights[f"{name}_scale"] = scale.squeeze(1)
        else:
            weights[name] = tensor.to(torch.bfloat16)
    return weights


def comfy_quantised(official: Mapping[str, Tensor], quant_format: str) -> StateDict:
    """Fused, quantised as this pack's converter does, or nvfp4 by ComfyUI's own code."""
    weights: StateDict = {}
    for name, tensor in official.items():
        if not is_quantised(name):
            weights[name] = tensor.to(torch.bfloat16)
            continue
        weights[name.replace(".weight", ".comfy_quant")] = quantization.marker(quant_format)
        if quant_format == quantization.FP8:
            scale = quantization.fp8_scale(float(tensor.abs().max()))
            weights |= {name: quantization.quantise_fp8(tensor, scale), f"{name}_scale": scale}
        elif quant_format == quantization.INT8:
            weights[name], weights[f"{name}_scale"] = quantization.quantise_int8(tensor)
        else:
            layout = QUANT_ALGOS[quant_format]["comfy_tensor_layout"]
            weights |= QuantizedTensor.from_float(tensor.float(), layout).state_dict(name)
    return weights
