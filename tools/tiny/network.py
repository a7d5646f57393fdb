"""The pack's own network with random weights, and files of it in the released layout."""

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, split_torch_state_dict_into_shards
from torch import Tensor

from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size

DIT_CONFIG: dict[str, Any] = {
    "_class_name": "LongCatVideoTransformer3DModel",
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 64,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 32,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 32,
    "frequency_embedding_size": 256,
    "patch_size": (1, 2, 2),
    "enable_bsa": False,
    "bsa_params": {"sparsity": 0.9375, "chunk_3d_shape_q": (4, 4, 4), "chunk_3d_shape_k": (4, 4, 4)},
    "text_tokens_zero_pad": True,
}


def build_dit(config: Mapping[str, Any]) -> Any:
    """The pack's own network at the sizes of a released-layout config; its weights are not set."""
    names = inspect.signature(LongCatVideoTransformer).parameters.keys() & config.keys()
    ffn_size = ffn_hidden_size(config["hidden_size"], config["mlp_ratio"])
    return LongCatVideoTransformer(**{name: config[name] for name in names}, ffn_hidden_size=ffn_size)


def write_random_dit(folder: Path, shards: int, generator: torch.Generator) -> None:
    """Write the pack's own network at the sizes of DIT_CONFIG with random weights."""
    weights = build_dit(DIT_CONFIG).state_dict()
    randomize(weights, generator)
    write_dit(folder, DIT_CONFIG, weights, shards)


def write_dit(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], shards: int = 1) -> None:
    """Write config and weights, as bf16, in the released layout."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_torch_state_dict(halves, folder, filename_pattern=pattern, max_shard_size=shard_size(halves, shards))


def shard_size(weights: Mapping[str, Tensor], shards: int) -> int:
    """Size limit in bytes with which huggingface_hub cuts `weights` into `shards` files.

    Raises:
        ValueError: no limit does.
    """
    total = sum(tensor.nbytes for tensor in weights.values())
    for size in range(math.ceil(total / max(shards, 1)), total + 1, 1024):
        if len(split_torch_state_dict_into_shards(weights, max_shard_size=size).filename_to_tensors) == shards:
            return size
    raise ValueError(f"--shards is {shards}: {len(weights)} tensors cannot be cut into that many files; use 1 to 8.")


def randomize(weights: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Fill tensors in place so that signals keep their size and every tensor shows in the output.

    Gains are near 1, biases near 0, matrices and kernels have unit gain; none is constant, so that a swapped pair of
    tensors changes the output too.
    """
    for name, tensor in weights.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith(".bias"):
            tensor.copy_(0.1 * noise)
        elif name.endswith(".gamma") or tensor.ndim == 1:
            tensor.copy_(1 + 0.1 * noise)
        else:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))
