"""Read an official-layout LongCat-Video folder into ComfyUI's MODEL, CLIP and VAE.

    dit/            config.json, one or several *.safetensors (several: with *.safetensors.index.json)
    text_encoder/   UMT5 as transformers writes it
    tokenizer/      spiece.model, or tokenizer.json
    vae/            AutoencoderKLWan as diffusers writes it
    scheduler/      scheduler_config.json (optional): the shift

Everything is checked before a model is built, so that a wrong or damaged file ends in one sentence.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import comfy.utils
import safetensors
import torch

from . import detection
from .schedule import DEFAULT_SHIFT
from .tokenizer import read_tokenizer
from .weights import dit_keys, umt5_from_transformers, umt5_keys, vae_from_diffusers, wrong_names

StateDict = dict[str, torch.Tensor]

DIT, TEXT_ENCODER, TOKENIZER, VAE, SCHEDULER = "dit", "text_encoder", "tokenizer", "vae", "scheduler"
CONFIG = "config.json"
WEIGHTS = "*.safetensors"
INDEX = "*.safetensors.index.json"

DIT_SIZES = (
    "in_channels",
    "out_channels",
    "hidden_size",
    "depth",
    "num_heads",
    "caption_channels",
    "adaln_tembed_dim",
    "frequency_embedding_size",
    "patch_size",
)
TEXT_SIZES = ("d_ff", "d_kv", "d_model", "num_heads", "num_layers", "vocab_size")
DOWNLOAD_HINT = "Download it again, for example from meituan-longcat/LongCat-Video, and compare the file sizes."


def find_model_folders(roots: Iterable[str]) -> dict[str, Path]:
    """Folders below `roots` that hold a `dit/`, by name; the first root wins."""
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        candidates = sorted(root.iterdir()) if root.is_dir() else []
        for folder in candidates:
            if (folder / DIT).is_dir():
                found.setdefault(folder.name, folder)
    return found


def read_config(component: Path) -> dict[str, Any]:
    """The `config.json` of a component.

    Raises:
        ValueError: the file is missing or is not JSON.
    """
    return read_json(component / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing or is not a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing. {DOWNLOAD_HINT}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {DOWNLOAD_HINT}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of an object. {DOWNLOAD_HINT}")
    return content


def weight_files(component: Path) -> list[Path]:
    """The safetensors files of a component: the shards that its index names, or its only file.

    Raises:
        ValueError: no file, a shard is missing, or several files without an index.
    """
    files = sorted(component.glob(WEIGHTS))
    indices = sorted(component.glob(INDEX))
    if not indices:
        if not files:
            raise ValueError(f"{component} holds no .safetensors file. {DOWNLOAD_HINT}")
        if len(files) > 1:
            raise ValueError(
                f"{component} holds {len(files)} .safetensors files but no {INDEX} that lists them. {DOWNLOAD_HINT}"
            )
        return files
    names = sorted(set(read_json(indices[0]).get("weight_map", {}).values()))
    missing = [name for name in names if not (component / name).is_file()]
    if missing or not names:
        what = f"{', '.join(missing)} missing" if missing else "no files listed"
        raise ValueError(f"{indices[0]} lists {len(names)} files, {what}. {DOWNLOAD_HINT}")
    return [component / name for name in names]


def read_weights(component: Path) -> StateDict:
    """All tensors of a component.

    Raises:
        ValueError: as `weight_files`, or a file is truncated or is not safetensors.
    """
    weights: StateDict = {}
    for path in weight_files(component):
        try:
            with safetensors.safe_open(str(path), framework="pt"):
                pass
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{path} is damaged or incomplete: {error} ({path.stat().st_size:,} bytes). {DOWNLOAD_HINT}"
            ) from error
        weights |= comfy.utils.load_torch_file(str(path), safe_load=True)
    return weights


def check_sizes(component: Path, config: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Compare the sizes that a config names with those of the tensors.

    Raises:
        ValueError: they disagree; lists each size.
    """

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    wrong = [
        f"{name} is {config[name]} in {CONFIG} but {plain(size)} in the tensors"
        for name, size in actual.items()
        if name in config and config[name] != plain(size)
    ]
    if wrong:
        raise ValueError(
            f"{component}: {'; '.join(wrong)}. {CONFIG} and weights are of different models: "
            f"download both from the same repository."
        )


def check_names(component: Path, names: Iterable[str], expected: frozenset[str]) -> None:
    """Compare tensor names; further tensors of a known layer (quantisation scales) are fine.

    Raises:
        ValueError: names are missing or do not belong to the model; gives examples of both.
    """
    names = set(names)
    layers = {name.rpartition(".")[0] for name in expected}
    unknown = {name for name in names - expected if name.rpartition(".")[0] not in layers}
    wrong = wrong_names(expected - names, unknown)
    if wrong:
        raise ValueError(f"{component}: of {len(expected)} expected tensors {wrong}. {DOWNLOAD_HINT}")


def load_dit(folder: Path, model_options: dict[str, Any] | None = None, disable_dynamic: bool = False) -> Any:
    """The network in `folder/dit` as a ComfyUI ModelPatcher, with the shift of `folder/scheduler`.

    Args:
        folder: official-layout folder.
        model_options: as `comfy.sd.load_diffusion_model` takes them (`dtype`, ...).
        disable_dynamic: as there.

    Raises:
        ValueError: damaged or missing files, a model other than LongCat-Video, config and tensors disagree.
    """
    component = folder / DIT
    config = read_config(component)
    weights = read_weights(component)
    sizes = detect_dit(component, weights)
    check_sizes(component, config, {name: sizes[name] for name in DIT_SIZES})
    check_names(component, weights, dit_keys(sizes["depth"]))

    patcher = comfy.sd.load_diffusion_model_state_dict(
        weights, model_options=model_options or {}, disable_dynamic=disable_dynamic
    )
    patcher.model.diffusion_model.text_tokens_zero_pad = config.get("text_tokens_zero_pad", True)
    patcher.model.model_sampling.set_parameters(shift=read_shift(folder), multiplier=1000)
    patcher.cached_patcher_init = (load_dit, (folder, model_options))
    return patcher


def detect_dit(component: Path, weights: StateDict) -> dict[str, Any]:
    """Sizes of the LongCat-Video DiT made of `weights`.

    Raises:
        ValueError: the tensors are another model's; names it if ComfyUI knows it.
    """
    if detection.is_avatar(weights):
        raise ValueError(
            f"{component} holds LongCat-Video-Avatar, which needs audio conditioning that this pack does not have. "
            f"Use the weights of LongCat-Video (repository meituan-longcat/LongCat-Video)."
        )
    sizes = comfy.model_detection.detect_unet_config(weights, "") or {}
    if sizes.get("image_model") != detection.IMAGE_MODEL:
        what = f"a model of type '{sizes['image_model']}'" if "image_model" in sizes else "tensors of another model"
        raise ValueError(
            f"{component} holds {what}, not LongCat-Video. Choose a folder with LongCat-Video weights; "
            f"other models load with the node Load Diffusion Model."
        )
    return sizes


def read_shift(folder: Path) -> float:
    """Shift of the noise schedule in `folder/scheduler`, 12 if there is none."""
    path = folder / SCHEDULER / "scheduler_config.json"
    return float(read_json(path).get("shift", DEFAULT_SHIFT)) if path.is_file() else DEFAULT_SHIFT


def load_vae(folder: Path) -> Any:
    """The VAE in `folder/vae` as a ComfyUI VAE.

    Raises:
        ValueError: damaged or missing files, not a Wan 2.1 VAE, or config and tensors disagree.
    """
    component = folder / VAE
    config = read_config(component)
    weights = read_weights(component)
    try:
        weights = vae_from_diffusers(weights)
    except ValueError as error:
        raise ValueError(f"{component} is not a Wan 2.1 VAE as diffusers writes it: {error}") from error
    sizes = {"base_dim": weights["decoder.head.0.gamma"].shape[0], "z_dim": weights["conv2.weight"].shape[0]}
    check_sizes(component, config, sizes)
    vae = comfy.sd.VAE(sd=weights)
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (vae_patcher, (folder,))
    return vae


def vae_patcher(folder: Path, disable_dynamic: bool = False) -> Any:
    """A fresh patcher of the VAE, for ComfyUI's clones on other devices; core offers no non-dynamic VAE either."""
    return load_vae(folder).patcher


def load_text_encoder(folder: Path, disable_dynamic: bool = False) -> Any:
    """UMT5 in `folder/text_encoder` with `folder/tokenizer` as a ComfyUI CLIP.

    Raises:
        ValueError: damaged or missing files, or config and tensors disagree.
    """
    component = folder / TEXT_ENCODER
    tokenizer_data = read_tokenizer(folder / TOKENIZER)
    config = read_config(component)
    weights = umt5_from_transformers(read_weights(component))
    sizes = text_encoder_sizes(component, config, weights)

    target = comfy.supported_models_base.ClipTarget(
        comfy.text_encoders.wan.WanT5Tokenizer,
        comfy.text_encoders.wan.te(**comfy.text_encoders.sd3_clip.t5_xxl_detect(weights)),
    )
    clip = comfy.sd.CLIP(
        target,
        tokenizer_data=tokenizer_data,
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        model_options={"umt5xxl_model_config": sizes},
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (text_encoder_patcher, (folder,))
    return clip


def text_encoder_patcher(folder: Path, disable_dynamic: bool = False) -> Any:
    """A fresh patcher of the text encoder, for ComfyUI's clones on other devices."""
    return load_text_encoder(folder, disable_dynamic=disable_dynamic).patcher


def text_encoder_sizes(component: Path, config: Mapping[str, Any], weights: StateDict) -> dict[str, int]:
    """Sizes of a UMT5 encoder, read from its config and checked against its tensors.

    Raises:
        ValueError: the config lacks a size, tensors are missing or unknown, or the two disagree.
    """
    absent = [name for name in TEXT_SIZES if name not in config]
    if absent:
        raise ValueError(f"{component / CONFIG} lacks {', '.join(absent)}: it is not the config of a UMT5 encoder.")
    sizes = {name: config[name] for name in TEXT_SIZES}
    check_names(component, weights, umt5_keys(sizes["num_layers"]))
    first = "encoder.block.0.layer"
    check_sizes(
        component,
        {**sizes, "inner_size": sizes["num_heads"] * sizes["d_kv"]},
        {
            "vocab_size": weights["shared.weight"].shape[0],
            "d_model": weights["shared.weight"].shape[1],
            "d_ff": weights[f"{first}.1.DenseReluDense.wi_0.weight"].shape[0],
            "inner_size": weights[f"{first}.0.SelfAttention.q.weight"].shape[0],
            "num_heads": weights[f"{first}.0.SelfAttention.relative_attention_bias.weight"].shape[1],
        },
    )
    return sizes
