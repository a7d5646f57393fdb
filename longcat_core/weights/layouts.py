"""The tensors of LongCat-Video's DiT in every layout that people have, and the way between them.

The network has two forms. The released one is *fused*: q, k and v of self-attention are one matrix `attn.qkv`, k and v
of cross-attention one matrix `cross_attn.kv_linear` (1022 tensors at depth 48). Files whose matrices are apart may hold
a scale for each, so they load into the *split* form (1310 tensors) instead of being joined.

    official    meituan-longcat/LongCat-Video, and what this pack writes    fused
    split       the same names, with q_linear, k_linear and v_linear        split
    wan         single files for ComfyUI, and GGUF: named as Wan's are      split
    fastvideo   FastVideo's conversion                                      split

A fused matrix is its parts, one below the other; each part is its heads, one below the other. So a part is a chunk
along dimension 0. Everything else differs in nothing but names.

Source: meituan-longcat/LongCat-Video, `modules/attention.py`; readers and writers of the other layouts.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

OFFICIAL, SPLIT, WAN, FASTVIDEO = "official", "split", "wan", "fastvideo"
BLOCK_LAYER = re.compile(r"blocks[._](\d+)[._](.+)")
TENSOR = re.compile(r"(?P<block>blocks\.\d+\.)?(?P<layer>.+)\.(?P<parameter>[^.]+)")


class Rows(NamedTuple):
    """One of `num_parts` equal chunks of rows."""

    part: int = 0
    num_parts: int = 1


class Layer(NamedTuple):
    """A layer with parameters: its name in the network, in `wan` and in `fastvideo`, and the shape of its weight.

    Shapes are in the units of `sizes`; a bias has the first of them.
    """

    name: str
    wan: str
    fastvideo: str
    shape: tuple[str, ...]
    bias: bool = True


ENDS = (
    Layer("x_embedder.proj", "patch_embedding", "patch_embed.proj", ("C", "patch")),
    Layer("t_embedder.mlp.0", "time_embedding.mlp.0", "time_embedder.linear_1", ("A", "frequencies")),
    Layer("t_embedder.mlp.2", "time_embedding.mlp.2", "time_embedder.linear_2", ("A", "A")),
    Layer("y_embedder.y_proj.0", "text_embedding.0", "caption_embedder.linear_1", ("C", "caption")),
    Layer("y_embedder.y_proj.2", "text_embedding.2", "caption_embedder.linear_2", ("C", "C")),
    Layer("final_layer.linear", "head.head", "final_layer.proj", ("output", "C")),
    Layer("final_layer.adaLN_modulation.1", "head.modulation.1", "final_layer.adaln_linear", ("2C", "A")),
)
BLOCK = (
    Layer("adaLN_modulation.1", "modulation.1", "adaln_linear_1", ("6C", "A")),
    Layer("pre_crs_attn_norm", "norm3", "norm_cross", ("C",)),
    Layer("attn.q_norm", "self_attn.norm_q", "self_attn.q_norm", ("head",), bias=False),
    Layer("attn.k_norm", "self_attn.norm_k", "self_attn.k_norm", ("head",), bias=False),
    Layer("attn.proj", "self_attn.o", "self_attn.to_out", ("C", "C")),
    Layer("cross_attn.q_linear", "cross_attn.q", "cross_attn.to_q", ("C", "C")),
    Layer("cross_attn.q_norm", "cross_attn.norm_q", "cross_attn.q_norm", ("head",), bias=False),
    Layer("cross_attn.k_norm", "cross_attn.norm_k", "cross_attn.k_norm", ("head",), bias=False),
    Layer("cross_attn.proj", "cross_attn.o", "cross_attn.to_out", ("C", "C")),
    Layer("ffn.w1", "ffn.w1", "ffn.w1", ("F", "C"), bias=False),
    Layer("ffn.w2", "ffn.w2", "ffn.w2", ("C", "F"), bias=False),
    Layer("ffn.w3", "ffn.w3", "ffn.w3", ("F", "C"), bias=False),
)
SPLIT_BLOCK = (
    Layer("attn.q_linear", "self_attn.q", "self_attn.to_q", ("C", "C")),
    Layer("attn.k_linear", "self_attn.k", "self_attn.to_k", ("C", "C")),
    Layer("attn.v_linear", "self_attn.v", "self_attn.to_v", ("C", "C")),
    Layer("cross_attn.k_linear", "cross_attn.k", "cross_attn.to_k", ("C", "C")),
    Layer("cross_attn.v_linear", "cross_attn.v", "cross_attn.to_v", ("C", "C")),
)
FUSED_BLOCK = (
    Layer("attn.qkv", "", "", ("3C", "C")),
    Layer("cross_attn.kv_linear", "", "", ("2C", "C")),
)
PARTS = {
    "attn.qkv": ("attn.q_linear", "attn.k_linear", "attn.v_linear"),
    "cross_attn.kv_linear": ("cross_attn.k_linear", "cross_attn.v_linear"),
}
# The matrices that take nearly all of the memory and of the time: 95 % of the parameters.
MATRICES = (
    *("attn.qkv", "attn.q_linear", "attn.k_linear", "attn.v_linear", "attn.proj"),
    *("cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.k_linear", "cross_attn.v_linear", "cross_attn.proj"),
    *("ffn.w1", "ffn.w2", "ffn.w3"),
)
# These identify the family: no other has most of them.
LOST_LAYERS = 2
SIGNATURE = (
    *("t_embedder.mlp.2", "blocks.0.adaLN_modulation.1", "blocks.0.pre_crs_attn_norm"),
    *(
        "blocks.0.cross_attn.q_linear",
        "blocks.0.cross_attn.q_norm",
        "blocks.0.ffn.w3",
        "final_layer.adaLN_modulation.1",
    ),
)

_ALL_BLOCK = (*BLOCK, *SPLIT_BLOCK, *FUSED_BLOCK)
_TABLES: dict[str, dict[str, str]] = {
    OFFICIAL: {},
    SPLIT: {},
    WAN: {layer.wan: layer.name for layer in (*ENDS, *BLOCK, *SPLIT_BLOCK)},
    FASTVIDEO: {layer.fastvideo: layer.name for layer in (*ENDS, *BLOCK, *SPLIT_BLOCK)},
}
_INVERSE = {layout: {name: foreign for foreign, name in table.items()} for layout, table in _TABLES.items()}
_END_LAYERS = {name.replace(".", "_"): layer.name for layer in ENDS for name in layer[:3]}
_BLOCK_LAYERS = {name.replace(".", "_"): layer.name for layer in _ALL_BLOCK for name in layer[:3] if name}
LAYOUTS = tuple(_TABLES)


def is_split(layout: str) -> bool:
    """Whether q, k and v are matrices of their own in a layout."""
    return layout != OFFICIAL


def is_matrix(layer: str) -> bool:
    """Whether a layer of the network is one of the large matrices of attention and feed-forward."""
    match = BLOCK_LAYER.fullmatch(layer)
    return match is not None and match[2] in MATRICES


def parts_of(layer: str) -> tuple[str, ...]:
    """The layers of the split network that a layer is made of: itself, where it is none of the fused."""
    for fused, parts in PARTS.items():
        if layer.endswith(f".{fused}"):
            return tuple(f"{layer.removesuffix(fused)}{part}" for part in parts)
    return (layer,)


def to_network(tensor: str, layout: str) -> str:
    """The network's name of a tensor of a layout, such as `blocks.0.self_attn.q.weight`; others are left as they are.

    The last part of the name may be anything, such as `weight_scale`.
    """
    return _rename(tensor, _TABLES[layout])


def from_network(tensor: str, layout: str) -> str:
    """Inverse of `to_network`."""
    return _rename(tensor, _INVERSE[layout])


def _rename(tensor: str, table: Mapping[str, str]) -> str:
    match = TENSOR.fullmatch(tensor)
    if not match or match["layer"] not in table:
        return tensor
    return f"{match['block'] or ''}{table[match['layer']]}.{match['parameter']}"


def layer_of(module: str) -> str | None:
    """The network's name of a layer by its name in any layout, dots or underscores between its parts; None if unknown.

    `blocks.3.self_attn.q` and `blocks_3_attn_q_linear` are both `blocks.3.attn.q_linear`.
    """
    match = BLOCK_LAYER.fullmatch(module)
    block, name = (f"blocks.{match[1]}.", match[2]) if match else ("", module)
    layer = (_BLOCK_LAYERS if match else _END_LAYERS).get(name.replace(".", "_"))
    return None if layer is None else f"{block}{layer}"


def which_layout(tensors: Collection[str]) -> str | None:
    """The layout that tensors are named in, or None if they are not LongCat-Video's.

    A file that lost a few tensors is still told from other models', so that what is missing can be named.
    """

    def known(layout: str) -> int:
        attention = "blocks.0.attn.q_linear" if is_split(layout) else "blocks.0.attn.qkv"
        names = [from_network(f"{layer}.weight", layout) for layer in (attention, *SIGNATURE)]
        return sum(name in tensors or f"{name}_int8" in tensors for name in names)

    layout = max(LAYOUTS, key=known)
    return layout if known(layout) > len(SIGNATURE) - LOST_LAYERS else None


def tensor_names(depth: int, split: bool = False) -> frozenset[str]:
    """The network's tensors with `depth` blocks: 1022 at LongCat-Video's 48, 1310 if split."""
    return frozenset(
        f"{name}.{parameter}"
        for name, layer in _layers(depth, split).items()
        for parameter in (("weight", "bias") if layer.bias else ("weight",))
    )


def tensor_shapes(config: Mapping[str, Any], split: bool = False) -> dict[str, tuple[int, ...]]:
    """The network's tensors and their shapes for the constructor arguments `config`."""
    sizes = _sizes(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in _layers(config["depth"], split).items():
        shape = tuple(size for unit in layer.shape for size in sizes[unit])
        shapes[f"{name}.weight"] = shape
        if layer.bias:
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _layers(depth: int, split: bool) -> dict[str, Layer]:
    block = (*BLOCK, *(SPLIT_BLOCK if split else FUSED_BLOCK))
    return {layer.name: layer for layer in ENDS} | {
        f"blocks.{index}.{layer.name}": layer for index in range(depth) for layer in block
    }


def _sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, patch_size = config["hidden_size"], tuple(config["patch_size"])
    patch_volume = patch_size[0] * patch_size[1] * patch_size[2]
    return {
        "C": (width,),
        "2C": (2 * width,),
        "3C": (3 * width,),
        "6C": (6 * width,),
        "F": (config["ffn_hidden_size"],),
        "A": (config["adaln_tembed_dim"],),
        "head": (width // config["num_heads"],),
        "caption": (config["caption_channels"],),
        "frequencies": (config["frequency_embedding_size"],),
        "patch": (config["in_channels"], *patch_size),
        "output": (patch_volume * config["out_channels"],),
    }
