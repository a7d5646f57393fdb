"""Load an official-layout model folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..longcat_core.comfyui.load import (
    DITS,
    SCHEDULER,
    TEXT_ENCODER,
    TOKENIZER,
    VAE,
    find_model_folders,
    load_dit,
    load_text_encoder,
    load_vae,
)
from ..longcat_core.segments.contents import files_digest
from .checks import checked

MODELS_FOLDER = "longcat"
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def model_folders() -> dict[str, Path]:
    """Model folders by name, from `models/longcat` and the `longcat` entries of extra_model_paths."""
    return find_model_folders(folder_paths.get_folder_paths(MODELS_FOLDER))


def model_folder(folder: str) -> Path:
    """The model folder of a name.

    Raises:
        ValueError: there is none; says which there are, and where they are looked for.
    """
    found = model_folders()
    if folder in list(found):
        return found[folder]
    roots = " or ".join(folder_paths.get_folder_paths(MODELS_FOLDER))
    raise ValueError(
        f"There is no model folder '{folder}'; found: {', '.join(found) or 'none'}. Put the downloaded folder into "
        f"{roots}, so that its dit/, text_encoder/, tokenizer/ and vae/ lie in a folder of that name, then press R."
    )


def check_folder(folder: object) -> None:
    """Raise ValueError as `model_folder`; what is no name at all is for ComfyUI to refuse."""
    if isinstance(folder, str):
        model_folder(folder)


def folder_content(folder: Path) -> list[tuple[str, str]]:
    """Names and contents of the files of a model folder that are read; of large files a sample of the contents."""
    parts = (folder / part for part in (*DITS, TEXT_ENCODER, TOKENIZER, VAE, SCHEDULER))
    files = (path for part in parts for path in part.rglob("*") if path.is_file())
    seen = (path for path in files if not any(name.startswith(".") for name in path.relative_to(folder).parts))
    return files_digest(seen, folder)


@checked(check_folder)
class LongCatLoader(io.ComfyNode):
    """Folder -> MODEL, CLIP, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatLoader",
            display_name="LongCat Loader",
            category="model/loaders",
            description="Loads a LongCat-Video folder as released: dit/, text_encoder/, tokenizer/, vae/, and the "
            "shift from scheduler/. Single-file weights load with Load Diffusion Model, Load CLIP (type wan) and "
            "Load VAE instead; the outputs mix freely.",
            search_aliases=["longcat video", "load longcat", "longcat checkpoint", "text to video model"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(model_folders()),
                    tooltip="A folder in models/longcat, or in a path that extra_model_paths.yaml lists under "
                    "'longcat'. It must contain dit/.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="How the network's weights are kept: default = bf16 where the device computes in it, else "
                    "fp32. fp8 halves memory and costs some quality. The text encoder and VAE are not affected.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The network."),
                io.Clip.Output(tooltip="The UMT5 text encoder."),
                io.Vae.Output(tooltip="The Wan 2.1 VAE."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, weight_dtype: str = "default") -> str:
        """What the files hold: when they are replaced under their names, ComfyUI loads them anew."""
        return str(folder_content(model_folder(folder)))

    @classmethod
    def execute(cls, folder: str, weight_dtype: str = "default") -> io.NodeOutput:
        """Load the parts that the folder has; using one that it lacks is an error where it is used."""
        path = model_folder(folder)
        return io.NodeOutput(
            load_dit(path, WEIGHT_DTYPES[weight_dtype]),
            part(path, TEXT_ENCODER, load_text_encoder, "Load CLIP (type wan)"),
            part(path, VAE, load_vae, "Load VAE"),
        )


def part(folder: Path, component: str, load: Callable[[Path], Any], core_node: str) -> Any:
    """A part of the folder, or what stands for one that is not there."""
    if (folder / component).is_dir():
        return load(folder)
    return MissingPart(
        f"The model folder {folder.name} has no {component}/. Download it next to dit/, or load a single file with "
        f"the node {core_node} and connect that instead."
    )


class MissingPart:
    """An output that a folder cannot give: unused it does no harm, reading anything of it is an error that says why."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    def __getattr__(self, name: str) -> Any:
        # Copying looks attributes up before there is a sentence.
        raise AttributeError(self.__dict__.get("sentence", name))
