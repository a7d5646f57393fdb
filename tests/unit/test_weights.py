import pytest
import torch
from diffusers import AutoencoderKLWan
from transformers import UMT5Config, UMT5EncoderModel

from longcat_core.weights import vae_umt5 as weights


def tiny_vae() -> dict[str, torch.Tensor]:
    return AutoencoderKLWan(base_dim=1).state_dict()


def tiny_umt5(num_layers: int = 3) -> dict[str, torch.Tensor]:
    config = UMT5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=num_layers, num_heads=2)
    return UMT5EncoderModel(config).state_dict()


def test_vae_table_covers_diffusers_exactly_once() -> None:
    assert len(weights.WAN_NAME) == len(weights.DIFFUSERS_NAME) == weights.NUM_VAE_TENSORS
    assert len({module.diffusers for module in weights.VAE_MODULES}) == len(weights.VAE_MODULES)
    with torch.device("meta"):
        assert weights.WAN_NAME.keys() == AutoencoderKLWan(base_dim=96).state_dict().keys()


@pytest.mark.parametrize(
    ("diffusers", "wan"),
    [
        ("encoder.down_blocks.3.conv_shortcut.bias", "encoder.downsamples.3.shortcut.bias"),
        ("decoder.up_blocks.1.resnets.0.conv_shortcut.weight", "decoder.upsamples.4.shortcut.weight"),
        ("decoder.up_blocks.2.upsamplers.0.resample.1.weight", "decoder.upsamples.11.resample.1.weight"),
        ("decoder.mid_block.resnets.0.norm1.gamma", "decoder.middle.0.residual.0.gamma"),
        ("post_quant_conv.weight", "conv2.weight"),
    ],
)
def test_vae_names_that_comfyui_reads(diffusers: str, wan: str) -> None:
    assert weights.WAN_NAME[diffusers] == wan


def test_vae_round_trip_returns_the_same_tensors() -> None:
    state_dict = tiny_vae()
    back = weights.vae_to_diffusers(weights.vae_from_diffusers(state_dict))
    assert list(back) == list(state_dict)
    assert all(back[name] is tensor for name, tensor in state_dict.items())


def test_vae_with_wrong_tensors_is_refused_by_name() -> None:
    state_dict = tiny_vae()
    del state_dict["quant_conv.bias"]
    state_dict["extra"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"194 are needed: 1 missing \(.* quant_conv\.bias\) and 1 unknown \(.* extra\)"
    ):
        weights.vae_from_diffusers(state_dict)


def test_an_error_names_only_a_few_of_many_tensors() -> None:
    with pytest.raises(
        ValueError, match=r"0 tensors .* 194 missing \(for example conv1\.bias, conv1\.weight, conv2\.bias\)"
    ):
        weights.vae_to_diffusers({})


def test_umt5_names_are_those_of_transformers_without_the_tied_embedding() -> None:
    state_dict = tiny_umt5(num_layers=3)
    assert weights.umt5_keys(3) == state_dict.keys() - {"encoder.embed_tokens.weight"}
    assert len(weights.umt5_keys(24)) == 242
    converted = weights.umt5_from_transformers(state_dict)
    assert converted.keys() == weights.umt5_keys(3)
    assert all(tensor is state_dict[name] for name, tensor in converted.items())


@pytest.mark.parametrize("stored", ["shared.weight", "encoder.embed_tokens.weight"])
def test_umt5_embedding_is_found_under_either_name(stored: str) -> None:
    embedding = torch.ones(2, 2)
    converted = weights.umt5_from_transformers({stored: embedding})
    assert converted.keys() == {"shared.weight"}
    assert converted["shared.weight"] is embedding


def test_umt5_with_two_different_embeddings_is_refused() -> None:
    state_dict = {"shared.weight": torch.ones(2, 2), "encoder.embed_tokens.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="two different embeddings"):
        weights.umt5_from_transformers(state_dict)
