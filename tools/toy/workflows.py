"""The shipped workflows with the toy model in them, for the demo, the thumbnails and the tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from host.process import PACK
from host.videos import write_video
from PIL import Image

from toy.clips import SIZE, draw, random_clips, subject_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

MODEL = "longcat-toy"
GIVEN_FRAMES = 13  # of the video that is continued
STORY_FRAMES = 5  # what a segment is given of the one before
REFINED_SIZE = 2 * SIZE
WITHOUT_GUIDANCE = ("longcat_continuation",)  # which would push the shape past its place; see docs/toy.md
SINGLE_FILE_LOADERS = ("UNETLoader", "CLIPLoader", "VAELoader")  # in the order of the outputs of LongCatLoader

Workflow = dict[str, dict[str, Any]]


def install_toy(models: Path) -> Path:
    """Copy the toy into ComfyUI's folder of models and return where it is."""
    return shutil.copytree(PACK / "assets" / "toy", models / "longcat" / MODEL, dirs_exist_ok=True)


def toy_workflow(name: str, prompts: Sequence[str], length: int, steps: int, seed: int) -> Workflow:
    """A shipped workflow in API format, made to run on the toy.

    Args:
        prompts: one, or one per segment.
        length: frames, of each segment.
    """
    path = PACK / "workflows" / "api" / f"{name}.json"
    workflow: Workflow = json.loads(path.read_text(encoding="utf-8"))
    size = {"width": SIZE, "height": SIZE, "length": length}
    run = {"steps": steps, "seed": seed} | ({"cfg": 1.0} if name in WITHOUT_GUIDANCE else {})
    refined = {"width": REFINED_SIZE, "height": REFINED_SIZE, "size": "custom"}
    story = {"prompts": "\n".join(prompts), "negative": "", "segments": 0, "num_cond_frames": STORY_FRAMES}
    inputs: dict[str, dict[str, Any]] = {
        "LongCatLoader": {"folder": MODEL},
        "LongCatLatent": {**size, "size": "custom"},
        "LongCatContinueLatent": {"length": length},
        "EmptyHunyuanLatentVideo": size,
        "LongCatSigmas": {"steps": steps},
        "LongCatSampler": {**run, "mode": "base"},
        "KSampler": run,
        "LongCatBlockSparseAttention": {"sparsity": 0.0},  # the toy was trained without
        "LongCatRefineLatent": refined,
        "LongCatRefineVideo": {**refined, "length": length, "num_cond_frames": STORY_FRAMES, "seed": seed},
        "LongCatStoryboard": {**size, **run, **story, "size": "custom", "mode": "base"},
        "RandomNoise": {"noise_seed": seed},
    }
    texts = {
        "Positive prompt": prompts[0],
        "Prompt of segment 1": prompts[0],
        "Prompt of segment 2": prompts[-1],
        "Negative prompt": "",
    }
    for node in workflow.values():
        refines = node["inputs"].get("mode") == "refine"
        node["inputs"].update({"seed": seed} if refines else inputs.get(node["class_type"], {}))
        if node["_meta"]["title"] in texts:
            node["inputs"]["text"] = texts[node["_meta"]["title"]]
    return without_loras(with_folder_loader(workflow, MODEL))


def without_loras(workflow: Workflow) -> Workflow:
    """The workflow with what each LoRA changes in the place of the LoRA: the toy has none."""
    loras = {node_id: node for node_id, node in workflow.items() if node["class_type"] == "LoraLoaderModelOnly"}
    nodes = {node_id: node for node_id, node in workflow.items() if node_id not in loras}
    for node in nodes.values():
        for name, value in node["inputs"].items():
            while isinstance(value, list) and value[0] in loras:
                value = loras[value[0]]["inputs"]["model"]
            node["inputs"][name] = value
    return nodes


def with_folder_loader(workflow: Workflow, folder: str, replaced: Sequence[str] = SINGLE_FILE_LOADERS) -> Workflow:
    """The workflow with one *LongCat Loader* in the place of the loaders of single files that are `replaced`."""
    slots = {
        node_id: SINGLE_FILE_LOADERS.index(node["class_type"])
        for node_id, node in workflow.items()
        if node["class_type"] in replaced
    }
    if not slots:
        return workflow
    loader = min(slots)
    nodes = {node_id: node for node_id, node in workflow.items() if node_id not in slots}
    for node in nodes.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in slots:
                node["inputs"][name] = [loader, slots[value[0]]]
    inputs = {"folder": folder, "weight_dtype": "default"}
    return {loader: {"class_type": "LongCatLoader", "inputs": inputs, "_meta": {"title": "LongCat Loader"}}, **nodes}


def write_given_files(folder: Path, workflow: Workflow, prompt: str) -> None:
    """Draw what the workflow loads: a picture or a video of what `prompt` speaks of, with all the way to go."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = given_frames(prompt, seed=0)
    for node in workflow.values():
        if node["class_type"] == "LoadImage":
            Image.fromarray(frames[0]).save(folder / node["inputs"]["image"])
        elif node["class_type"] == "LoadVideo":
            write_video(frames, folder / node["inputs"]["file"])


def given_frames(prompt: str, seed: int) -> np.ndarray:
    """The beginning of a clip of what `prompt` speaks of, uint8 `[T, height, width, 3]`."""
    generator = torch.Generator().manual_seed(seed)
    (pixels,) = draw(random_clips((subject_of(prompt),), GIVEN_FRAMES, generator, room=SIZE))
    return ((pixels + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
