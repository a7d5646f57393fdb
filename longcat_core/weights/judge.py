"""From the tensors of a file to the network: which sizes it has, whether it is complete, and its weights.

Only names, shapes and dtypes are read to judge a file, and before the network is built: GGUF's tensors have no other
content that could be read, and a damaged file must not decide how much memory is taken.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import quantization
from .layouts import from_network, is_matrix, is_split, tensor_shapes, to_network, which_layout
from .vae_umt5 import wrong_names

AVATAR = ("audio_proj.", "multitalk_audio_proj.", "blocks.0.audio_cross_attn.", "blocks.0.audio_modulation.")
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, *FLOAT8)
INTEGERS = (torch.int8, torch.uint8)
# Tensors that are small but touch every number: damage that leaves names and shapes alone mostly shows here.
CHECKED_SIZE = 1 << 20
ADVICE = "The file is damaged, incomplete or of another model: download it again and compare its size."


def is_avatar(tensors: Iterable[str]) -> bool:
    """Whether the tensors are LongCat-Video-Avatar's, which shares most names but needs audio conditioning."""
    return any(name.startswith(AVATAR) for name in tensors)


def read_config(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The constructor arguments of the network that tensors of any layout are for, or None if they are another model's.

    `quantised` is added: whether there are layers in a form that ComfyUI does not know.

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
    expected = {from_network(name, layout): shape for name, shape in shapes.items()}
    matrices = {from_network(name, layout) for name in shapes if is_matrix(name.removesuffix(".weight"))}
    problems = list(_problems(tensors, expected, matrices))
    if problems:
        raise ValueError(
            f"Of the {len(expected)} tensors of this LongCat-Video checkpoint there are {', '.join(problems)}. {ADVICE}"
        )
    return {**config, "quantised": quantization.is_foreign(tensors)}


def read_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that `read_config` accepted, as the network names them and quantised as ComfyUI does.

    Raises:
        ValueError: a small tensor holds a number that is not finite.
    """
    layout = which_layout(tensors)
    assert layout is not None, "read_config accepted these tensors"
    named = {to_network(name, layout): tensor for name, tensor in tensors.items() if name != quantization.MARKER}
    broken = sorted(name for name, tensor in tensors.items() if not _is_finite(tensor))
    if broken:
        raise ValueError(
            f"{len(broken)} tensors of this LongCat-Video checkpoint have numbers that are not finite (for example "
            f"{broken[0]}). {ADVICE}"
        )
    return quantization.to_comfy(named)


def _config(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Any]:
    def shape(network_name: str, dimensions: int) -> tuple[int, ...]:
        name = from_network(network_name, layout)
        tensor = tensors.get(name, tensors.get(f"{name}_int8"))
        found = () if tensor is None else tuple(tensor.shape)
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
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], matrices: Collection[str]
) -> Iterator[str]:
    stored = {name.removesuffix("_int8"): tensor for name, tensor in tensors.items()}
    layers = {name.rpartition(".")[0] for name in expected}
    unknown = {name for name in stored.keys() - expected.keys() if not _belongs(name, layers)}
    wrong_name = wrong_names(expected.keys() - stored.keys(), unknown)
    if wrong_name:
        yield wrong_name
    common = sorted(expected.keys() & stored.keys())
    shapes = {name: _stored_shape(name, tensors, expected[name]) for name in common}
    wrong = [name for name in common if tuple(stored[name].shape) != shapes[name]]
    if wrong:
        found, needed = list(stored[wrong[0]].shape), list(shapes[wrong[0]])
        yield f"{len(wrong)} of a wrong shape (for example {wrong[0]} with {found} instead of {needed})"
    wrong = [name for name in common if not _dtype_fits(name, stored[name])]
    if wrong:
        yield f"{len(wrong)} of a wrong dtype (for example {wrong[0]} as {stored[wrong[0]].dtype})"
    wrong = sorted(_unscaled(tensors, matrices))
    if wrong:
        yield f"{len(wrong)} without a scale (for example {wrong[0]})"
    wrong = sorted(name for name, tensor in tensors.items() if not _scale_fits(name, tensors, tensor))
    if wrong:
        yield f"{len(wrong)} scales of a wrong shape (for example {wrong[0]} with {list(tensors[wrong[0]].shape)})"


def _belongs(name: str, layers: Collection[str]) -> bool:
    layer, _, parameter = name.rpartition(".")
    return name == quantization.MARKER or (layer in layers and parameter in quantization.SCALES)


def _stored_shape(name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the stored numbers: nvfp4 packs two into a byte and fills both sides up to multiples of 16."""
    if not name.endswith(".weight") or f"{name}_scale_2" not in tensors:
        return shape
    return tuple(-(-size // 16) * 16 // divisor for size, divisor in zip(shape, (1, 2), strict=True))


def _dtype_fits(name: str, tensor: Tensor) -> bool:
    """Plain numbers are floats, quantised ones may be integers. GGUF's tensors are a type of their own."""
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return not is_plain or tensor.dtype in (*FLOATS, *(INTEGERS if name.endswith(".weight") else ()))


def _unscaled(tensors: Mapping[str, Tensor], matrices: Collection[str]) -> Iterator[str]:
    """Weights without the scale that they need: integers, what is marked as quantised, fp8 matrices among scaled ones.

    Plain fp8, where no weight has a scale, needs none, nor do the small layers of a model that was saved in fp8.
    """
    scaled = {name.rpartition(".")[0] for name in tensors if name.endswith((".weight_scale", ".scale_weight"))}
    for name, tensor in tensors.items():
        layer, _, parameter = name.rpartition(".")
        if parameter not in ("weight", "weight_int8") or layer in scaled:
            continue
        is_plain = type(tensor) in (Tensor, torch.nn.Parameter)
        is_scaled_fp8 = bool(scaled) and tensor.dtype in FLOAT8 and name in matrices
        if f"{layer}.comfy_quant" in tensors or (is_plain and (tensor.dtype in INTEGERS or is_scaled_fp8)):
            yield name


def _scale_fits(name: str, tensors: Mapping[str, Tensor], tensor: Tensor) -> bool:
    """Whether a scale is one number, one for each row of an int8 matrix, or one for 16 numbers of an nvfp4 matrix.

    Those of mxfp8 are left to ComfyUI.
    """
    layer, _, parameter = name.rpartition(".")
    weight = tensors.get(f"{layer}.weight", tensors.get(f"{layer}.weight_int8"))
    if parameter not in ("weight_scale", "scale_weight") or weight is None or tensor.dtype == torch.float8_e8m0fnu:
        return True
    if f"{layer}.weight_scale_2" in tensors:  # in tiles of 128 rows and 4 columns
        rows, bytes_per_row = weight.shape
        return tuple(tensor.shape) == (-(-rows // 128) * 128, -(-bytes_per_row // 32) * 4)
    rows = weight.shape[0] if weight.dtype == torch.int8 else 1
    return tensor.numel() == 1 or tuple(tensor.shape) in ((rows,), (rows, 1))


def _is_finite(tensor: Tensor) -> bool:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.dtype not in FLOATS or tensor.numel() > CHECKED_SIZE:
        return True
    return bool(torch.isfinite(tensor.float()).all())
