"""Read an official-layout LongCat-Video folder into ComfyUI's MODEL, CLIP and VAE.

    dit/            config.json, one or several *.safetensors (several: with *.safetensors.index.json); or transformer/
    text_encoder/   UMT5 as transformers writes it
    tokenizer/      spiece.model, or tokenizer.json
    vae/            AutoencoderKLWan as diffusers writes it
    scheduler/      scheduler_config.json (optional): the shift

Files, names and sizes are checked on the way, so that a wrong or damaged folder ends in one sentence.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import comfy.utils
from comfy.model_patcher import ModelPatcher

from ..schedule import DEFAULT_SHIFT
from ..weights.folder import CONFIG, check_names, check_sizes, read_json, setting, weight_files
from ..weights.safetensors_file import read_header
from ..weights.vae_umt5 import StateDict, umt5_from_transformers, umt5_keys, vae_from_diffusers
from .family import CONFIG_METADATA
from .tokenizer import read_tokenizer

DITS = ("dit", "transformer")
TEXT_ENCODER, TOKENIZER, VAE, SCHEDULER = "text_encoder", "tokenizer", "vae", "scheduler"
TEXT_SIZES = ("d_ff", "d_kv", "d_model", "num_heads", "num_layers", "vocab_size")


def read_tensors(component: Path) -> StateDict:
    """All tensors of a component.

    Raises:
        ValueError: as `weight_files`, or a file is truncated or is not safetensors.
    """
    weights: StateDict = {}
    for path in weight_files(component):
        read_header(path)
        weights |= comfy.utils.load_torch_file(str(path), safe_load=True)
    return weights


def dit_folder(folder: Path) -> Path:
    """The network in a model folder: `dit/` as released, or `transformer/` as diffusers calls it."""
    return next((folder / name for name in DITS if (folder / name).is_dir()), folder / DITS[0])


def find_model_folders(roots: Iterable[str]) -> dict[str, Path]:
    """Folders below `roots` that hold a network, by name; the first root wins."""
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        candidates = sorted(root.iterdir()) if root.is_dir() else []
        for folder in candidates:
            if dit_folder(folder).is_dir():
                found.setdefault(folder.name, folder)
    return found


def load_dit(folder: Path, model_options: dict[str, Any] | None = None, disable_dynamic: bool = False) -> ModelPatcher:
    """The network of a folder as a ComfyUI ModelPatcher, with the shift of `folder/scheduler`.

    Args:
        folder: official-layout folder.
        model_options: as `comfy.sd.load_diffusion_model` takes them (`dtype`, ...).
        disable_dynamic: as there.

    Raises:
        ValueError: damaged or missing files, a model other than LongCat-Video, config and tensors disagree.
    """
    component = dit_folder(folder)
    config, shift = read_json(component / CONFIG), read_shift(folder)
    weights = read_tensors(component)
    with naming(component):
        patcher = comfy.sd.load_diffusion_model_state_dict(
            weights,
            model_options=model_options or {},
            metadata={CONFIG_METADATA: json.dumps(config)},
            disable_dynamic=disable_dynamic,
        )
    patcher.model.model_sampling.set_parameters(shift=shift, multiplier=1000)
    patcher.cached_patcher_init = (load_dit, (folder, model_options))
    return patcher


@contextlib.contextmanager
def naming(component: Path) -> Iterator[None]:
    """Put a path in front of what is wrong with the weights in it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{component}: {error}") from error


def read_shift(folder: Path) -> float:
    """Shift of the noise schedule in `folder/scheduler`, 12 if there is none.

    Raises:
        ValueError: it is not a number above 0.
    """
    path = folder / SCHEDULER / "scheduler_config.json"
    if not path.is_file():
        return DEFAULT_SHIFT
    shift = setting(path, read_json(path), "shift", int | float, "a number", DEFAULT_SHIFT)
    if shift <= 0:
        raise ValueError(f"{path}: shift is {shift}; it must be above 0 (LongCat-Video has {DEFAULT_SHIFT:g}).")
    return float(shift)


def load_vae(folder: Path) -> comfy.sd.VAE:
    """The VAE in `folder/vae` as a ComfyUI VAE.

    Raises:
        ValueError: damaged or missing files, not a Wan 2.1 VAE, or config and tensors disagree.
    """
    component = folder / VAE
    config = read_json(component / CONFIG)
    weights = read_tensors(component)
    try:
        weights = vae_from_diffusers(weights)
    except ValueError as error:
        raise ValueError(f"{component} is not a Wan 2.1 VAE as diffusers writes it: {error}") from error
    sizes = {"base_dim": weights["decoder.head.0.gamma"].shape[0], "z_dim": weights["conv2.weight"].shape[0]}
    with naming(component):
        check_sizes(config, sizes)
    vae = comfy.sd.VAE(sd=weights)
    vae.throw_exception_if_invalid()
    vae.patcher.cached_patcher_init = (vae_patcher, (folder,))
    return vae


def vae_patcher(folder: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """A fresh patcher of the VAE, for ComfyUI's clones on other devices; core offers no non-dynamic VAE either."""
    return load_vae(folder).patcher


def load_text_encoder(folder: Path, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """UMT5 in `folder/text_encoder` with `folder/tokenizer` as a ComfyUI CLIP.

    Raises:
        ValueError: damaged or missing files, or config and tensors disagree.
    """
    component = folder / TEXT_ENCODER
    tokenizer_data = read_tokenizer(folder / TOKENIZER)
    config = read_json(component / CONFIG)
    weights = umt5_from_transformers(read_tensors(component))
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
    num_pieces = len(clip.tokenizer.clip_umt5xxl.inv_vocab)
    if num_pieces > sizes["vocab_size"]:
        raise ValueError(
            f"{folder / TOKENIZER} has {num_pieces} pieces but {component} only {sizes['vocab_size']}: they are of "
            f"different models. Download both from the same repository."
        )
    clip.patcher.cached_patcher_init = (text_encoder_patcher, (folder,))
    return clip


def text_encoder_patcher(folder: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """A fresh patcher of the text encoder, for ComfyUI's clones on other devices."""
    return load_text_encoder(folder, disable_dynamic=disable_dynamic).patcher


def text_encoder_sizes(component: Path, config: Mapping[str, Any], weights: StateDict) -> dict[str, int]:
    """Sizes of a UMT5 encoder, read from its config and checked against its tensors.

    Raises:
        ValueError: the config lacks a size, tensors are missing or unknown, or the two disagree.
    """
    absent = [name for name in TEXT_SIZES if not isinstance(config.get(name), int) or config[name] < 1]
    if absent:
        raise ValueError(
            f"{component / CONFIG} has no whole number above 0 as {', '.join(absent)}; a UMT5 encoder's has."
        )
    sizes = {name: config[name] for name in TEXT_SIZES}
    check_names(component, weights, umt5_keys(sizes["num_layers"]))
    first = "encoder.block.0.layer"
    actual = {
        "vocab_size": weights["shared.weight"].shape[0],
        "d_model": weights["shared.weight"].shape[1],
        "d_ff": weights[f"{first}.1.DenseReluDense.wi_0.weight"].shape[0],
        "d_kv": weights[f"{first}.0.SelfAttention.q.weight"].shape[0] // sizes["num_heads"],
        "num_heads": weights[f"{first}.0.SelfAttention.relative_attention_bias.weight"].shape[1],
    }
    with naming(component):
        check_sizes(sizes, actual)
    return sizes
