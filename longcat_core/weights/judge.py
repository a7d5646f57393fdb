"""From the tensors of a file to the network: which sizes it has, whether it is complete, and its weights.

Only names, shapes and dtypes are read to judge a file, and before the network is built: GGUF's tensors have no other
content that could be read, and a damaged file must not decide how much memory is taken.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import quantization
from .advice import DOWNLOAD_AGAIN
from .layouts import from_network, is_split, tensor_shapes, to_network, which_layout
from .safetensors_file import TensorType
from .stored import FLOATS, PROBLEMS, InMemory, StoredLayer, layers_of, type_of
from .vae_umt5 import wrong_names

AVATAR = ("audio_proj.", "multitalk_audio_proj.", "blocks.0.audio_cross_attn.", "blocks.0.audio_modulation.")
# Tensors that are small but touch every number: damage that leaves names and shapes alone mostly shows here.
CHECKED_SIZE = 1 << 20
ADVICE = f"The file is damaged, incomplete or of another model. {DOWNLOAD_AGAIN}"


def is_avatar(tensors: Iterable[str]) -> bool:
    """Whether the tensors are LongCat-Video-Avatar's, which shares most names but needs audio conditioning."""
    return any(name.startswith(AVATAR) for name in tensors)


def read_config(tensors: Mapping[str, TensorType]) -> dict[str, Any] | None:
    """The constructor arguments of the network that tensors of any layout are for, or None if they are another model's.

    Raises:
        ValueError: the tensors are LongCat-Video's but missing, unknown, of a wrong shape or dtype; names them.
    """
    layout = which_layout(tensors)
    if layout is None:
        return None
    if is_avatar(tensors):
        raise ValueError(
            "This is LongCat-Video-Avatar, which needs audio conditioning that this pack does not have. Use the "
            "weights of LongCat-Video (repository meituan-longcat/LongCat-Video)."
        )
    config = _config(tensors, layout)
    shapes = tensor_shapes(config, is_split(layout))
    problems = list(_problems(tensors, layers_of(tensors, layout), shapes, layout))
    if problems:
        raise ValueError(
            f"Of the {len(shapes)} tensors of this LongCat-Video checkpoint there are {', '.join(problems)}. {ADVICE}"
        )
    return config


def read_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that `read_config` accepted, as the network names them and quantised as ComfyUI does.

    Raises:
        ValueError: a small tensor holds a number that is not finite.
    """
    layout = which_layout(tensors)
    assert layout is not None, "read_config accepted these tensors"
    broken = sorted(name for name, tensor in tensors.items() if not _is_finite(tensor))
    if broken:
        raise ValueError(
            f"{len(broken)} tensors of this LongCat-Video checkpoint have numbers that are not finite (for example "
            f"{broken[0]}). {ADVICE}"
        )
    source = InMemory(tensors)
    layers = [layer for layer in layers_of(source.tensors, layout).values() if layer.name]
    return {name: tensor for layer in layers for name, tensor in layer.for_network(source).items()}


def is_foreign(tensors: Collection[str]) -> bool:
    """Whether tensors that `read_config` accepted are quantised in a form that ComfyUI does not know."""
    layout = which_layout(tensors)
    kinds = dict.fromkeys(tensors, TensorType(torch.float32, ()))
    return layout is not None and any(layer.is_foreign for layer in layers_of(kinds, layout).values())


def _config(tensors: Mapping[str, TensorType], layout: str) -> dict[str, Any]:
    def shape(network_name: str, dimensions: int) -> tuple[int, ...]:
        name = from_network(network_name, layout)
        tensor = tensors.get(name, tensors.get(f"{name}_int8"))
        found = () if tensor is None else tensor.shape
        if len(found) != dimensions or 0 in found:
            what = "is missing" if tensor is None else f"is {list(found)}"
            raise ValueError(f"This LongCat-Video checkpoint cannot be read: {name} {what}. {ADVICE}")
        return found

    hidden_size, in_channels, *patch_size = shape("x_embedder.proj.weight", 5)
    if patch_size[-1] > in_channels:
        raise ValueError(
            "This LongCat-Video checkpoint was converted for MLX, which stores the patch embedding with its channels "
            "last. Use the released weights."
        )
    (head_dim,) = shape("blocks.0.attn.q_norm.weight", 1)
    if hidden_size % head_dim:
        raise ValueError(
            f"This LongCat-Video checkpoint cannot be read: {hidden_size} channels are no whole number of heads of "
            f"{head_dim}. {ADVICE}"
        )
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return {
        "in_channels": in_channels,
        "out_channels": shape("final_layer.linear.weight", 2)[0] // (patch_size[0] * patch_size[1] * patch_size[2]),
        "hidden_size": hidden_size,
        "depth": len(blocks),
        "num_heads": hidden_size // head_dim,
        "caption_channels": shape("y_embedder.y_proj.0.weight", 2)[1],
        "ffn_hidden_size": shape("blocks.0.ffn.w1.weight", 2)[0],
        "adaln_tembed_dim": shape("t_embedder.mlp.2.weight", 2)[0],
        "frequency_embedding_size": shape("t_embedder.mlp.0.weight", 2)[1],
        "patch_size": tuple(patch_size),
        "split_projections": is_split(layout),
    }


def _problems(
    tensors: Collection[str], layers: Mapping[str, StoredLayer], shapes: Mapping[str, tuple[int, ...]], layout: str
) -> Iterator[str]:
    expected = {from_network(name, layout) for name in shapes}
    stored = {name.removesuffix("_int8") for name in tensors}
    unknown = {name for name in stored - expected if not _is_scale(to_network(name, layout), shapes)}
    unknown |= {name for name in tensors if f"{name}_int8" in tensors}
    wrong_name = wrong_names(expected - stored, unknown)
    if wrong_name:
        yield wrong_name
    are_scaled = any(layer.scale_name for layer in layers.values())
    problems = [problem for layer in layers.values() for problem in layer.problems(_own(layer, shapes), are_scaled)]
    for kind in PROBLEMS:
        same = sorted(problem for problem in problems if problem.kind == kind)
        if same:
            yield f"{len(same)} {kind} (for example {same[0].tensor}{same[0].detail})"


def _is_scale(name: str, shapes: Collection[str]) -> bool:
    layer, _, parameter = name.rpartition(".")
    return name == quantization.MARKER or (parameter in quantization.SCALES and f"{layer}.weight" in shapes)


def _own(layer: StoredLayer, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's own parameters."""
    names = {parameter: f"{layer.name}.{parameter}" for parameter in ("weight", "bias")}
    return {parameter: shapes[name] for parameter, name in names.items() if name in shapes}


def _is_finite(tensor: Tensor) -> bool:
    kind = type_of(tensor)
    if not kind.is_plain or kind.dtype not in FLOATS or kind.num_elements > CHECKED_SIZE:
        return True
    return bool(torch.isfinite(tensor.float()).all())
