"""What prepare_weights.py writes: from the tensors of a model, as people have it, to those of the new files.

A part of a model is a list of targets (`values.py`). Nothing is read from the files but headers and scales until
the targets are asked for their chunks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from ..lora.file import LoraFile
from ..weights import judge, layouts, quantization, vae_umt5
from ..weights.advice import GET_AGAIN
from ..weights.safetensors_file import Reader
from ..weights.stored import Renamed, Stored, StoredLayer, layers_of
from .lora import lora_targets
from .values import Held, Joined, Plain, Quantised, Scaled, Values, ranges

RULES = "1"
"""Raised when the same source would give other bytes."""
DIT, TEXT_ENCODER, VAE, LORA = "DiT", "text encoder", "VAE", "LoRA"
COMFY_PLACES = {
    DIT: "diffusion_models/{name}_{dtype}.safetensors",
    TEXT_ENCODER: "text_encoders/{name}_umt5_xxl_bf16.safetensors",
    VAE: "vae/{name}_vae.safetensors",
    LORA: "loras/{name}.safetensors",
}
"""Where ComfyUI's own loaders find a part, below its models folder."""
OFFICIAL_PLACES = {
    DIT: "dit/diffusion_pytorch_model.safetensors",
    TEXT_ENCODER: "text_encoder/model.safetensors",
    VAE: "vae/diffusion_pytorch_model.safetensors",
}
"""Where LongCatLoader finds a part, in a model's folder."""
FORMATS = {"bf16": None, "fp8": quantization.FP8, "int8": quantization.INT8, "nvfp4": quantization.NVFP4}
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
SPIECE = "spiece_model"
OWN_CONFIG = ("split_projections", "ffn_hidden_size")
KNOWN_SETTINGS = {"format", quantization.FULL_PRECISION}


def kind_of(tensors: Collection[str]) -> str | None:
    """Which part of a model tensors are: DIT, TEXT_ENCODER, VAE, LORA, or None if they are something else.

    Raises:
        ValueError: they are a text encoder or VAE in the form that would be written.
    """
    if layouts.which_layout(_without_prefix(tensors).keys()):
        return DIT
    if SPIECE in tensors or len(vae_umt5.DIFFUSERS_NAME.keys() & set(tensors)) > vae_umt5.NUM_VAE_TENSORS // 2:
        raise ValueError("this is a file for ComfyUI's own loaders already: use it as it is.")
    if "encoder.final_layer_norm.weight" in tensors:
        return TEXT_ENCODER
    if len(vae_umt5.WAN_NAME.keys() & set(tensors)) > vae_umt5.NUM_VAE_TENSORS // 2:
        return VAE
    return LORA if LoraFile.of(frozenset(tensors)).index else None


def targets_of(kind: str, reader: Reader, dtype: str, for_comfy: bool, spiece: bytes | None) -> list[Plain | Quantised]:
    """What is to be written of a part.

    Args:
        kind: what `kind_of` found.
        reader: the part's files.
        dtype: of a DiT's matrices, one of FORMATS.
        for_comfy: for ComfyUI's own loaders, instead of LongCatLoader.
        spiece: the sentencepiece model that goes into a text encoder's file.

    Raises:
        ValueError: the files are damaged, or of a kind that cannot be converted.
        OSError: they cannot be read.
    """
    if kind == DIT:
        return DitSource(reader).targets(FORMATS[dtype])
    if kind == TEXT_ENCODER:
        return text_encoder_targets(reader, spiece)
    return vae_targets(reader, wan_names=for_comfy) if kind == VAE else lora_targets(reader)


def _without_prefix(tensors: Collection[str]) -> dict[str, str]:
    """Names in the file by names without the prefix that most have; other tensors are of other models."""
    prefix = max(PREFIXES, key=lambda prefix: sum(name.startswith(f"{prefix}blocks.") for name in tensors))
    return {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}


class DitSource:
    """A DiT of any layout.

    Raises:
        ValueError: it is not complete, or quantised in a form that is not read here.
    """

    def __init__(self, reader: Reader) -> None:
        self.source = Renamed(reader, _without_prefix(reader.tensors))
        config, layout = judge.read_config(self.source.tensors), layouts.which_layout(self.source.tensors)
        assert layout is not None, "kind_of found a DiT"
        assert config is not None, "kind_of found a DiT"
        self.config = config
        self.is_split = layouts.is_split(layout)
        self.layers = layers_of(self.source.tensors, layout)
        self.formats = {name: found for name in sorted(self.layers) if (found := self._format(self.layers[name]))}

    @property
    def released_config(self) -> dict[str, object]:
        """The sizes as the released config names them."""
        return {name: value for name, value in self.config.items() if name not in OWN_CONFIG}

    def targets(self, quant_format: str | None) -> list[Plain | Quantised]:
        """The DiT with fused matrices in a format, the rest in bf16; what has the format already is not changed."""
        keeps = quant_format in self.formats.values()
        targets: list[Plain | Quantised] = []
        for name in sorted(layouts.tensor_shapes(self.config, self.is_split and keeps)):
            layer, _, parameter = name.rpartition(".")
            is_matrix = parameter == "weight" and layouts.is_matrix(layer)
            if is_matrix and keeps and self.formats.get(layer) == quant_format:
                targets += self._copies(layer)
            elif is_matrix and quant_format and not keeps:
                targets.append(Quantised(layer, self._values(layer, parameter), quant_format))
            else:
                targets.append(Plain(name, self._values(layer, parameter), torch.bfloat16))
        return targets

    def _format(self, layer: StoredLayer) -> str | None:
        settings = layer.settings(self.source)
        if not settings and layer.scale_name is None:
            return None
        dtype = layer.types[layer.numbers].dtype
        found = {torch.float8_e4m3fn: quantization.FP8, torch.int8: quantization.INT8}.get(dtype)
        is_known = settings.get("format", found) == found and not settings.keys() - KNOWN_SETTINGS
        if found is None or not is_known:
            raise ValueError(
                f"{layer.name} is quantised as {settings or dtype}, which is not converted here: use weights in "
                f"{quantization.FP8} or {quantization.INT8}, or such as are not quantised."
            )
        return found

    def _values(self, layer: str, parameter: str) -> Values:
        parts = (layer,) if layer in self.layers else layouts.parts_of(layer)
        values = tuple(self._part(self.layers[part], parameter) for part in parts)
        return Joined(values) if len(values) > 1 else values[0]

    def _part(self, layer: StoredLayer, parameter: str) -> Values:
        numbers = Stored(self.source, layer.tensors[layer.numbers if parameter == "weight" else parameter])
        is_scaled = parameter == "weight" and layer.name in self.formats
        return Scaled(numbers, layer.scale(self.source)) if is_scaled else numbers

    def _copies(self, layer: str) -> Iterator[Plain]:
        """A quantised layer as the loader brings it to ComfyUI's form."""
        for parameter, found in self.layers[layer].comfy_form(self.source).items():
            values = Stored(self.source, found) if isinstance(found, str) else Held(found)
            yield Plain(f"{layer}.{parameter}", values, values.type.dtype)


def text_encoder_targets(reader: Reader, spiece: bytes | None) -> list[Plain | Quantised]:
    """UMT5 in bf16 as transformers names it, with the sentencepiece model where ComfyUI looks for it.

    Raises:
        ValueError: it is not complete, or has two different embeddings.
    """
    names = {name: name for name in reader.tensors}
    alias = names.pop(vae_umt5.UMT5_EMBEDDING_ALIAS, None)
    if alias and names.setdefault(vae_umt5.UMT5_EMBEDDING, alias) != alias:
        shared, other = Stored(reader, vae_umt5.UMT5_EMBEDDING), Stored(reader, alias)
        if shared.type != other.type or not all(
            torch.equal(shared.rows(*some), other.rows(*some)) for some in ranges(other.type)
        ):
            raise ValueError(
                f"{vae_umt5.UMT5_EMBEDDING} and {alias} differ, where UMT5 has one embedding: {GET_AGAIN}."
            )
    num_layers = len({name.split(".")[2] for name in names if name.startswith("encoder.block.")})
    expected = vae_umt5.umt5_keys(num_layers)
    wrong = vae_umt5.wrong_names(expected - names.keys(), names.keys() - expected)
    if wrong:
        raise ValueError(f"of UMT5's {len(expected)} tensors {wrong}: {GET_AGAIN}.")
    targets: list[Plain | Quantised] = [
        Plain(name, Stored(reader, stored), torch.bfloat16) for name, stored in sorted(names.items())
    ]
    if spiece is not None:
        content = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
        targets.append(Plain(SPIECE, Held(content), torch.uint8))
    return targets


def vae_targets(reader: Reader, wan_names: bool) -> list[Plain | Quantised]:
    """The VAE in its own dtype, as Wan 2.1 names it or as diffusers does.

    Raises:
        ValueError: it is not complete.
    """
    vae_umt5.check_vae(reader.tensors.keys())
    return [
        Plain(vae_umt5.WAN_NAME[name] if wan_names else name, Stored(reader, name), kind.dtype)
        for name, kind in sorted(reader.tensors.items())
    ]
