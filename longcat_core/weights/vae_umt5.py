"""Tensor names of the released VAE and text encoder, and the way from the official folder's to ComfyUI's and back.

The official folder stores the VAE as diffusers names it and UMT5 as transformers names it; ComfyUI reads the names of
the original Wan 2.1 release and of T5. Only names differ: no tensor is reshaped, so none is copied.
"""

import itertools
from collections.abc import Iterator, Mapping, Set
from typing import NamedTuple

import torch

StateDict = dict[str, torch.Tensor]

AFFINE = ("weight", "bias")
GAMMA = ("gamma",)

# ---- VAE: diffusers `AutoencoderKLWan` <-> Wan 2.1

WIDTHS = (1, 2, 4, 4)  # Channels of the four stages, in units of the base width.
RES_BLOCKS = 2
TEMPORAL_DOWNSAMPLE = (False, True, True)
NUM_VAE_TENSORS = 194


class Rename(NamedTuple):
    """A module of the VAE that has parameters: its name in diffusers, its name in Wan 2.1, and those parameters."""

    diffusers: str
    wan: str
    parameters: tuple[str, ...]


def _residual_block(diffusers: str, wan: str, in_width: int, out_width: int) -> Iterator[Rename]:
    yield Rename(f"{diffusers}.norm1", f"{wan}.residual.0", GAMMA)
    yield Rename(f"{diffusers}.conv1", f"{wan}.residual.2", AFFINE)
    yield Rename(f"{diffusers}.norm2", f"{wan}.residual.3", GAMMA)
    yield Rename(f"{diffusers}.conv2", f"{wan}.residual.6", AFFINE)
    if in_width != out_width:
        yield Rename(f"{diffusers}.conv_shortcut", f"{wan}.shortcut", AFFINE)


def _resample(diffusers: str, wan: str, temporal: bool) -> Iterator[Rename]:
    yield Rename(f"{diffusers}.resample.1", f"{wan}.resample.1", AFFINE)
    if temporal:
        yield Rename(f"{diffusers}.time_conv", f"{wan}.time_conv", AFFINE)


def _middle(half: str) -> Iterator[Rename]:
    width = WIDTHS[-1]
    yield from _residual_block(f"{half}.mid_block.resnets.0", f"{half}.middle.0", width, width)
    for layer, parameters in (("norm", GAMMA), ("to_qkv", AFFINE), ("proj", AFFINE)):
        yield Rename(f"{half}.mid_block.attentions.0.{layer}", f"{half}.middle.1.{layer}", parameters)
    yield from _residual_block(f"{half}.mid_block.resnets.1", f"{half}.middle.2", width, width)


def _ends(half: str) -> Iterator[Rename]:
    yield Rename(f"{half}.conv_in", f"{half}.conv1", AFFINE)
    yield Rename(f"{half}.norm_out", f"{half}.head.0", GAMMA)
    yield Rename(f"{half}.conv_out", f"{half}.head.2", AFFINE)


def _down_stages() -> Iterator[Rename]:
    index = itertools.count()
    width = WIDTHS[0]
    for stage, out_width in enumerate(WIDTHS):
        for _ in range(RES_BLOCKS):
            i = next(index)
            yield from _residual_block(f"encoder.down_blocks.{i}", f"encoder.downsamples.{i}", width, out_width)
            width = out_width
        if stage < len(TEMPORAL_DOWNSAMPLE):
            i = next(index)
            temporal = TEMPORAL_DOWNSAMPLE[stage]
            yield from _resample(f"encoder.down_blocks.{i}", f"encoder.downsamples.{i}", temporal)


def _up_stages() -> Iterator[Rename]:
    index = itertools.count()
    width = WIDTHS[-1]
    for stage, out_width in enumerate(reversed(WIDTHS)):
        diffusers = f"decoder.up_blocks.{stage}"
        for block in range(RES_BLOCKS + 1):
            wan = f"decoder.upsamples.{next(index)}"
            yield from _residual_block(f"{diffusers}.resnets.{block}", wan, width, out_width)
            width = out_width
        if stage < len(TEMPORAL_DOWNSAMPLE):
            temporal = TEMPORAL_DOWNSAMPLE[-1 - stage]
            yield from _resample(f"{diffusers}.upsamplers.0", f"decoder.upsamples.{next(index)}", temporal)
            width //= 2


VAE_MODULES: tuple[Rename, ...] = (
    *_ends("encoder"),
    *_down_stages(),
    *_middle("encoder"),
    Rename("quant_conv", "conv1", AFFINE),
    Rename("post_quant_conv", "conv2", AFFINE),
    *_ends("decoder"),
    *_middle("decoder"),
    *_up_stages(),
)
WAN_NAME = {f"{m.diffusers}.{p}": f"{m.wan}.{p}" for m in VAE_MODULES for p in m.parameters}
DIFFUSERS_VAE = "This VAE (AutoencoderKLWan of Wan 2.1, as diffusers names it)"
DIFFUSERS_NAME = {wan: diffusers for diffusers, wan in WAN_NAME.items()}


def wrong_names(missing: Set[str], unknown: Set[str]) -> str:
    """How many tensors are missing and unknown, with examples, as words; empty if none are."""
    return " and ".join(
        f"{len(names)} {problem} (for example {', '.join(sorted(names)[:3])})"
        for problem, names in (("missing", missing), ("unknown", unknown))
        if names
    )


def check_vae(names: Set[str], needed: Set[str] = WAN_NAME.keys(), what: str = DIFFUSERS_VAE) -> None:
    """Raise ValueError unless names are exactly those of a VAE, as diffusers writes it by default."""
    wrong = wrong_names(needed - names, names - needed)
    if wrong:
        raise ValueError(
            f"{what} has {len(names)} tensors where exactly {len(needed)} are needed: {wrong}. "
            "Check that the file is complete and of this model."
        )


def vae_from_diffusers(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Rename a diffusers `AutoencoderKLWan` (Wan 2.1, any base width) to what `comfy.sd.VAE` loads.

    Raises:
        ValueError: the tensors are not exactly those of that class.
    """
    check_vae(state_dict.keys())
    return {WAN_NAME[name]: tensor for name, tensor in state_dict.items()}


def vae_to_diffusers(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Inverse of `vae_from_diffusers`.

    Raises:
        ValueError: the tensors are not exactly those of a Wan 2.1 VAE.
    """
    check_vae(state_dict.keys(), DIFFUSERS_NAME.keys(), "This VAE (Wan 2.1)")
    return {DIFFUSERS_NAME[name]: tensor for name, tensor in state_dict.items()}


# ---- Text encoder: transformers `UMT5EncoderModel` -> ComfyUI's T5

UMT5_EMBEDDING = "shared.weight"
UMT5_EMBEDDING_ALIAS = "encoder.embed_tokens.weight"
UMT5_BLOCK = (
    "layer.0.SelfAttention.q.weight",
    "layer.0.SelfAttention.k.weight",
    "layer.0.SelfAttention.v.weight",
    "layer.0.SelfAttention.o.weight",
    "layer.0.SelfAttention.relative_attention_bias.weight",
    "layer.0.layer_norm.weight",
    "layer.1.DenseReluDense.wi_0.weight",
    "layer.1.DenseReluDense.wi_1.weight",
    "layer.1.DenseReluDense.wo.weight",
    "layer.1.layer_norm.weight",
)


def umt5_keys(num_layers: int) -> frozenset[str]:
    """Tensor names that ComfyUI's UMT5 encoder needs: 242 at UMT5-XXL's 24 layers."""
    blocks = {f"encoder.block.{layer}.{name}" for layer in range(num_layers) for name in UMT5_BLOCK}
    return frozenset(blocks | {UMT5_EMBEDDING, "encoder.final_layer_norm.weight"})


def umt5_from_transformers(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Bring a transformers `UMT5EncoderModel` to ComfyUI's names.

    They agree except for the token embedding, which transformers ties under two names and stores under one or both.

    Raises:
        ValueError: both names are there and hold different embeddings.
    """
    renamed = dict(state_dict)
    alias = renamed.pop(UMT5_EMBEDDING_ALIAS, None)
    if alias is not None and not torch.equal(renamed.setdefault(UMT5_EMBEDDING, alias), alias):
        raise ValueError(
            f"The text encoder has two different embeddings, {UMT5_EMBEDDING} and {UMT5_EMBEDDING_ALIAS}, where UMT5 "
            "has one. Use the text_encoder folder that LongCat-Video was released with."
        )
    return renamed
