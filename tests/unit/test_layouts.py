"""The tables of names agree with the network, with what is known of the files, and with their inverses."""

from typing import Any

import pytest
import torch

from longcat_core import layouts
from longcat_core.model import LongCatVideoTransformer

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


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_what_follows_the_layer_is_kept(layout: str) -> None:
    foreign = layouts.from_network("blocks.7.attn.proj.weight_scale", layout)
    assert foreign.startswith("blocks.7.")
    assert foreign.endswith(".weight_scale")
    assert layouts.to_network(foreign, layout) == "blocks.7.attn.proj.weight_scale"


@pytest.mark.parametrize(
    ("layout", "name", "foreign"),
    [
        (layouts.WAN, "x_embedder.proj.weight", "patch_embedding.weight"),
        (layouts.WAN, "final_layer.adaLN_modulation.1.bias", "head.modulation.1.bias"),
        (layouts.WAN, "blocks.47.attn.v_linear.weight", "blocks.47.self_attn.v.weight"),
        (layouts.WAN, "blocks.0.pre_crs_attn_norm.bias", "blocks.0.norm3.bias"),
        (layouts.FASTVIDEO, "t_embedder.mlp.0.weight", "time_embedder.linear_1.weight"),
        (layouts.FASTVIDEO, "blocks.3.attn.q_norm.weight", "blocks.3.self_attn.q_norm.weight"),
        (layouts.FASTVIDEO, "blocks.3.adaLN_modulation.1.weight", "blocks.3.adaln_linear_1.weight"),
    ],
)
def test_names_that_were_seen_in_files(layout: str, name: str, foreign: str) -> None:
    assert layouts.from_network(name, layout) == foreign
    assert layouts.to_network(foreign, layout) == name


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
