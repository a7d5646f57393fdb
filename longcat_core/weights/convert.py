"""What prepare_weights.py writes: from the tensors of a model, as people have it, to those of the new files.

A part of a model is a list of targets (`values.py`). Nothing is read from the files but headers and scales until
the targets are asked for their chunks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..lora import names as lora_names
from . import judge, layouts, quantization
from . import vae_umt5 as weights
from .safetensors_file import Reader, TensorType
from .values import REDOWNLOAD, Change, Difference, Held, Joined, Plain, Quantised, Scaled, Stored, Values, ranges

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
FULL_PRECISION = "full_precision_matrix_mult"
SPIECE = "spiece_model"
LORA_PREFIX = "diffusion_model."
ADAPTER_METADATA = "lora_adapter_metadata"
ADAPTER_EXCEPTIONS = ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora")


def kind_of(tensors: Collection[str]) -> str | None:
    """Which part of a model tensors are: DIT, TEXT_ENCODER, VAE, LORA, or None if they are something else.

    Raises:
        ValueError: they are a text encoder or VAE in the form that would be written.
    """
    if layouts.which_layout(_without_prefix(tensors).keys()):
        return DIT
    if SPIECE in tensors or len(weights.DIFFUSERS_NAME.keys() & set(tensors)) > weights.NUM_VAE_TENSORS // 2:
        raise ValueError("this is a file for ComfyUI's own loaders already: use it as it is.")
    if "encoder.final_layer_norm.weight" in tensors:
        return TEXT_ENCODER
    if len(weights.WAN_NAME.keys() & set(tensors)) > weights.NUM_VAE_TENSORS // 2:
        return VAE
    return LORA if lora_names.read(frozenset(tensors)) else None


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


def _stand_ins(tensors: Mapping[str, TensorType]) -> dict[str, Tensor]:
    return {name: torch.empty(kind.shape, dtype=kind.dtype, device="meta") for name, kind in tensors.items()}


class DitSource:
    """A DiT of any layout.

    Raises:
        ValueError: it is not complete, or quantised in a form that is not read here.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        bare = _without_prefix(reader.tensors)
        layout = layouts.which_layout(bare.keys())
        config = judge.read_config(_stand_ins({name: reader.tensors[bare[name]] for name in bare}))
        assert layout is not None, "kind_of found a DiT"
        assert config is not None, "kind_of found a DiT"
        self.config = config
        self.is_split = layouts.is_split(layout)
        self.names = {layouts.to_network(name, layout): bare[name] for name in bare}
        layers = sorted({name.rpartition(".")[0] for name in self.names})
        self.formats = {layer: found for layer in layers if (found := self._format(layer))}

    @property
    def released_config(self) -> dict[str, object]:
        """The sizes as the released config names them."""
        own = {"quantised", "split_projections", "ffn_hidden_size"}
        return {name: value for name, value in self.config.items() if name not in own}

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

    def _format(self, layer: str) -> str | None:
        settings = self._settings(layer)
        if not settings and self._scale_name(layer) is None:
            return None
        dtype = self._weight(layer).type.dtype
        found = {torch.float8_e4m3fn: quantization.FP8, torch.int8: quantization.INT8}.get(dtype)
        if found is None or settings.get("format", found) != found or settings.keys() - {"format", FULL_PRECISION}:
            raise ValueError(
                f"{layer} is quantised as {settings or dtype}, which is not converted here: use weights in "
                f"{quantization.FP8} or {quantization.INT8}, or such as are not quantised."
            )
        return found

    def _settings(self, layer: str) -> dict[str, Any]:
        name = self.names.get(f"{layer}.comfy_quant")
        return {} if name is None else _object(name, bytes(self.reader.tensor(name).tolist()))

    def _scale_name(self, layer: str) -> str | None:
        return self.names.get(f"{layer}.scale_weight") or self.names.get(f"{layer}.weight_scale")

    def _weight(self, layer: str) -> Stored:
        return Stored(self.reader, self.names.get(f"{layer}.weight_int8") or self.names[f"{layer}.weight"])

    def _scale(self, layer: str) -> Tensor:
        name = self._scale_name(layer)
        assert name is not None, "a quantised layer has a scale"
        scale = self.reader.tensor(name).float()
        return scale if scale.numel() == 1 else scale.reshape(-1, 1)

    def _values(self, layer: str, parameter: str) -> Values:
        parts = parts_of(layer) if self.is_split and f"{layer}.{parameter}" not in self.names else (layer,)
        values = tuple(self._part(part, parameter) for part in parts)
        return Joined(values) if len(values) > 1 else values[0]

    def _part(self, layer: str, parameter: str) -> Values:
        if parameter != "weight":
            return Stored(self.reader, self.names[f"{layer}.{parameter}"])
        weight = self._weight(layer)
        return Scaled(weight, self._scale(layer)) if layer in self.formats else weight

    def _copies(self, layer: str) -> Iterator[Plain]:
        """A quantised layer as `quantization.to_comfy` gives it."""
        weight = self._weight(layer)
        yield Plain(f"{layer}.weight", weight, weight.type.dtype)
        yield Plain(f"{layer}.weight_scale", Held(self._scale(layer)), torch.float32)
        for name in (f"{layer}.scale_input", f"{layer}.input_scale"):
            if name in self.names:
                yield Plain(f"{layer}.input_scale", Stored(self.reader, self.names[name]), torch.float32)
        yield Plain(f"{layer}.comfy_quant", self._marker(layer), torch.uint8)

    def _marker(self, layer: str) -> Values:
        """Its own, or as ComfyUI's own reader does for files with `scaled_fp8`, whose length says how to multiply."""
        own, marker = self.names.get(f"{layer}.comfy_quant"), self.names.get(quantization.MARKER)
        if own:
            return Stored(self.reader, own)
        in_fp8 = self.formats[layer] != quantization.FP8 or (marker and self.reader.tensors[marker].shape == (1,))
        return Held(quantization.marker(self.formats[layer], **({} if in_fp8 else {FULL_PRECISION: True})))


def parts_of(layer: str) -> tuple[str, ...]:
    """The layers of the split network that a layer is made of: itself, where it is none of the fused."""
    for fused, parts in layouts.PARTS.items():
        if layer.endswith(f".{fused}"):
            return tuple(f"{layer.removesuffix(fused)}{part}" for part in parts)
    return (layer,)


def text_encoder_targets(reader: Reader, spiece: bytes | None) -> list[Plain | Quantised]:
    """UMT5 in bf16 as transformers names it, with the sentencepiece model where ComfyUI looks for it.

    Raises:
        ValueError: it is not complete, or has two different embeddings.
    """
    names = {name: name for name in reader.tensors}
    alias = names.pop(weights.UMT5_EMBEDDING_ALIAS, None)
    if alias and names.setdefault(weights.UMT5_EMBEDDING, alias) != alias:
        shared, other = Stored(reader, weights.UMT5_EMBEDDING), Stored(reader, alias)
        if shared.type != other.type or not all(
            torch.equal(shared.rows(*some), other.rows(*some)) for some in ranges(other.type)
        ):
            raise ValueError(f"{weights.UMT5_EMBEDDING} and {alias} differ, where UMT5 has one embedding: {REDOWNLOAD}")
    num_layers = len({name.split(".")[2] for name in names if name.startswith("encoder.block.")})
    expected = weights.umt5_keys(num_layers)
    wrong = weights.wrong_names(expected - names.keys(), names.keys() - expected)
    if wrong:
        raise ValueError(f"of UMT5's {len(expected)} tensors {wrong}: {REDOWNLOAD}")
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
    weights.vae_from_diffusers(_stand_ins(reader.tensors))
    return [
        Plain(weights.WAN_NAME[name] if wan_names else name, Stored(reader, name), kind.dtype)
        for name, kind in sorted(reader.tensors.items())
    ]


def lora_targets(reader: Reader) -> list[Plain | Quantised]:
    """A LoRA of any convention in bf16, as Wan's layers are named, with `alpha` in fp32.

    What cannot be written as one pair of matrices is written as the whole difference.

    Raises:
        ValueError: some tensors are not understood, or do not fit each other.
    """
    index = lora_names.read(frozenset(reader.tensors))
    targets: list[Plain | Quantised] = []
    used: set[str] = set()
    for layer in sorted({part for changed in index for part in parts_of(changed)}):
        pieces = lora_names.for_layer(index, layer)
        used |= {name for piece in pieces for name in lora_names.names_of(piece)}
        changes = tuple(_change(reader, piece) for piece in pieces)
        if len({change.shape for change in changes}) != 1:
            raise ValueError(f"its changes of {layer} are of different sizes: {REDOWNLOAD}")
        name = LORA_PREFIX + layouts.from_network(f"{layer}.weight", layouts.WAN).removesuffix(".weight")
        up, down = changes[0].up, changes[0].down
        if len(changes) > 1 or changes[0].rows != lora_names.Rows() or down is None:
            targets.append(Plain(f"{name}.diff", Difference(changes), torch.bfloat16))
            continue
        targets.append(Plain(f"{name}.lora_down.weight", down, torch.bfloat16))
        targets.append(Plain(f"{name}.lora_up.weight", up, torch.bfloat16))
        alpha = torch.tensor(changes[0].factor * down.type.num_rows)
        targets.append(Plain(f"{name}.alpha", Held(alpha), torch.float32))
    left = sorted(name for name in reader.tensors.keys() - used if not lora_names.is_for_text(name))
    if left:
        raise ValueError(f"{len(left)} of its tensors are not understood, for example {left[0]}: use it as it is.")
    return targets


def _change(reader: Reader, piece: lora_names.Piece) -> Change:
    up = Stored(reader, piece.up, piece.up_rows)
    down = None if piece.down is None else Stored(reader, piece.down, piece.down_rows)
    matrices = [matrix for matrix in (up, down) if matrix is not None]
    shapes = [matrix.type.shape for matrix in matrices]
    are_whole = all(reader.tensors[each.name].num_rows % each.rows_of.num_parts == 0 for each in matrices)
    if not are_whole or any(len(shape) != 2 for shape in shapes) or (down and shapes[0][1] != shapes[1][0]):
        raise ValueError(f"{piece.up} is {shapes[0]} and {piece.down} {shapes[-1]}: {REDOWNLOAD}")
    if piece.alpha is not None and math.prod(reader.tensors[piece.alpha].shape) != 1:
        raise ValueError(f"{piece.alpha} is {reader.tensors[piece.alpha].shape} instead of one number: {REDOWNLOAD}")
    if piece.down is None or (piece.alpha is None and ADAPTER_METADATA not in reader.metadata):
        return Change(piece.rows, 1.0, up, down)
    rank = reader.tensors[piece.down].num_rows
    if piece.alpha is None:
        return Change(piece.rows, _factor_of_metadata(reader.metadata), up, down)
    return Change(piece.rows, float(reader.tensor(piece.alpha)) / (1 if piece.is_factor else rank), up, down)


def _factor_of_metadata(metadata: Mapping[str, str]) -> float:
    """The factor of all layers, which diffusers notes beside the tensors."""
    noted = _object(ADAPTER_METADATA, metadata[ADAPTER_METADATA])
    settings = {name.rpartition(".")[2]: value for name, value in noted.items()}
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    is_uniform = not any(settings.get(name) for name in ADAPTER_EXCEPTIONS)
    if is_uniform and isinstance(rank, int | float) and isinstance(alpha, int | float) and rank > 0:
        return alpha / rank
    raise ValueError(f"its {ADAPTER_METADATA} is not one rank and one alpha for all layers: use it as it is.")


def _object(name: str, text: str | bytes) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"its {name} is a {type(found).__name__} instead of an object: {REDOWNLOAD}")
    return found
