"""The tables of names agree with the network, with what is known of the files, and with their inverses."""

from typing import Any

import pytest
import torch

from longcat_core.network.dit import LongCatVideoTransformer
from longcat_core.weights import layouts

SMALL: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 4,
    "hidden_size": 64,
    "depth": 3,
    "num_heads": 2,
    "caption_channels": 48,
    "ffn_hidden_size": 256,
    "adaln_tembed_dim": 24,
    "frequency_embedding_size": 20,
    "patch_size": (1, 2, 2),
}


def test_numbers_of_tensors() -> None:
    assert len(layouts.tensor_names(48)) == 1022
    assert len(layouts.tensor_names(48, split=True)) == 1310


@pytest.mark.parametrize("split", [False, True])
def test_names_and_shapes_are_the_network_s(split: bool) -> None:
    network = LongCatVideoTransformer(**SMALL, split_projections=split, device=torch.device("meta"))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert layouts.tensor_shapes(SMALL, split) == shapes
    assert layouts.tensor_names(3, split) == shapes.keys()


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_each_layout_has_an_inverse_and_is_recognised(layout: str) -> None:
    names = layouts.tensor_names(48, layouts.is_split(layout))
    foreign = {layouts.from_network(name, layout) for name in names}
    assert len(foreign) == len(names)
    assert {layouts.to_network(name, layout) for name in foreign} == names
    assert layouts.which_layout(foreign) == layout
    if layout in (layouts.WAN, layouts.FASTVIDEO):
        assert all(".ffn.w" in name or "_attn." in name for name in foreign & names)


# Written down from the readers and writers of these files, not from the tables: network, wan, fastvideo.
NAMES = """
x_embedder.proj                 patch_embedding         patch_embed.proj
t_embedder.mlp.0                time_embedding.mlp.0    time_embedder.linear_1
t_embedder.mlp.2                time_embedding.mlp.2    time_embedder.linear_2
y_embedder.y_proj.0             text_embedding.0        caption_embedder.linear_1
y_embedder.y_proj.2             text_embedding.2        caption_embedder.linear_2
final_layer.linear              head.head               final_layer.proj
final_layer.adaLN_modulation.1  head.modulation.1       final_layer.adaln_linear
blocks.0.adaLN_modulation.1     blocks.0.modulation.1        blocks.0.adaln_linear_1
blocks.0.pre_crs_attn_norm      blocks.0.norm3               blocks.0.norm_cross
blocks.0.attn.q_linear          blocks.0.self_attn.q         blocks.0.self_attn.to_q
blocks.0.attn.k_linear          blocks.0.self_attn.k         blocks.0.self_attn.to_k
blocks.0.attn.v_linear          blocks.0.self_attn.v         blocks.0.self_attn.to_v
blocks.0.attn.proj              blocks.0.self_attn.o         blocks.0.self_attn.to_out
blocks.0.attn.q_norm            blocks.0.self_attn.norm_q    blocks.0.self_attn.q_norm
blocks.0.attn.k_norm            blocks.0.self_attn.norm_k    blocks.0.self_attn.k_norm
blocks.0.cross_attn.q_linear    blocks.0.cross_attn.q        blocks.0.cross_attn.to_q
blocks.0.cross_attn.k_linear    blocks.0.cross_attn.k        blocks.0.cross_attn.to_k
blocks.0.cross_attn.v_linear    blocks.0.cross_attn.v        blocks.0.cross_attn.to_v
blocks.0.cross_attn.proj        blocks.0.cross_attn.o        blocks.0.cross_attn.to_out
blocks.0.cross_attn.q_norm      blocks.0.cross_attn.norm_q   blocks.0.cross_attn.q_norm
blocks.0.cross_attn.k_norm      blocks.0.cross_attn.norm_k   blocks.0.cross_attn.k_norm
blocks.0.ffn.w1                 blocks.0.ffn.w1              blocks.0.ffn.w1
blocks.0.ffn.w2                 blocks.0.ffn.w2              blocks.0.ffn.w2
blocks.0.ffn.w3                 blocks.0.ffn.w3              blocks.0.ffn.w3
"""


def test_every_name_of_a_released_file() -> None:
    rows = [line.split() for line in NAMES.split("\n") if line]
    assert {name.rpartition(".")[0] for name in layouts.tensor_names(1, split=True)} == {name for name, *_ in rows}
    for name, *foreign in rows:
        for layout, other in zip((layouts.WAN, layouts.FASTVIDEO), foreign, strict=True):
            assert layouts.from_network(f"{name}.weight", layout) == f"{other}.weight"


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_what_follows_the_layer_is_kept(layout: str) -> None:
    foreign = layouts.from_network("blocks.7.attn.proj.weight_scale", layout)
    assert foreign.startswith("blocks.7.")
    assert foreign.endswith(".weight_scale")
    assert layouts.to_network(foreign, layout) == "blocks.7.attn.proj.weight_scale"


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("dot", [".", "_"])
def test_a_layer_is_found_by_any_of_its_names(layout: str, dot: str) -> None:
    for tensor in layouts.tensor_names(12, layouts.is_split(layout)):
        layer = tensor.rpartition(".")[0]
        foreign = layouts.from_network(tensor, layout).rpartition(".")[0]
        assert layouts.layer_of(foreign.replace(".", dot)) == layer


@pytest.mark.parametrize("name", ["", "blocks.1", "blocks.1.", "blocks.x.attn.qkv", "blocks.1.attn.qkvw", "head"])
def test_other_names_are_no_layers(name: str) -> None:
    assert layouts.layer_of(name) is None


def test_matrices_are_95_percent_of_the_parameters() -> None:
    released = {**SMALL, "hidden_size": 4096, "depth": 48, "num_heads": 32, "caption_channels": 4096}
    released |= {"ffn_hidden_size": 11008, "adaln_tembed_dim": 512, "frequency_embedding_size": 256, "out_channels": 16}
    for split in (False, True):
        sizes = {name: torch.Size(shape).numel() for name, shape in layouts.tensor_shapes(released, split).items()}
        matrices = [
            name for name in sizes if name.endswith(".weight") and layouts.is_matrix(name.removesuffix(".weight"))
        ]
        assert len(matrices) == (528 if split else 384)
        assert sum(sizes[name] for name in matrices) == 12_935_233_536
        assert sum(sizes.values()) == 13_581_071_424


def test_a_file_that_lost_tensors_is_still_recognised() -> None:
    names = set(layouts.tensor_names(2)) - {"blocks.0.attn.qkv.weight", "t_embedder.mlp.2.weight"}
    assert layouts.which_layout(names) == layouts.OFFICIAL
    assert layouts.which_layout(set()) is None
    assert layouts.which_layout({"blocks.0.self_attn.q.weight", "patch_embedding.weight"}) is None
