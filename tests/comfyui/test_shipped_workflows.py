"""Every shipped workflow in a real ComfyUI server, on the tiny model, and the video that it saves."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from host.videos import read_video, saved_file, write_video
from lora_files import OFFICIAL_DOT, OFFICIAL_PREFIX
from PIL import Image
from toy.workflows import with_folder_loader

Prompt = dict[str, dict]

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
TINY, TINY_FILE = "tiny-random", "tiny-random.safetensors"
SMALL = {
    **{"folder": TINY, "unet_name": TINY_FILE, "steps": 3},
    **{"width": 64, "height": 64, "length": 17, "size": "custom", "num_cond_frames": 5, "overlap": 5, "segments": 3},
}
SINGLE_FILE_LOADERS = {"CLIPLoader": 1, "VAELoader": 2}  # the output of LongCatLoader that stands in for each

IMAGE, VIDEO = "example.png", "video.mp4"  # what the workflows load
VIDEO_WIDTH, VIDEO_HEIGHT, VIDEO_FRAMES = 96, 64, 21
LORAS = ("cfg_step_lora.safetensors", "refinement_lora.safetensors")
LORA_LAYER, TINY_WIDTH = "blocks.0.attn.proj", 64
SEGMENT, NEW = 17, 17 - 5  # frames of a segment, and those that a further one adds
SAVED = {
    "longcat_t2v": (64, 64, SEGMENT),
    "longcat_t2v_ksampler": (64, 64, SEGMENT),
    "longcat_i2v": (64, 64, SEGMENT),
    "longcat_continuation": (VIDEO_WIDTH, VIDEO_HEIGHT, VIDEO_FRAMES + NEW),
    "longcat_extend": (64, 64, SEGMENT + NEW),
    "longcat_long": (64, 64, SEGMENT + 2 * NEW),
    "longcat_interactive": (64, 64, SEGMENT + 3 * NEW),
    "longcat_t2v_refine": (64, 64, 2 * SEGMENT),
    "longcat_distill_refine": (64, 64, 2 * SEGMENT),
    "longcat_refine_video": (64, 64, 2 * VIDEO_FRAMES),
    "longcat_long_refine": (64, 64, 2 * (SEGMENT + 2 * NEW)),
}
FRAMES_PER_SECOND = 15
SAVED_PER_SECOND = {name: (2 if "refine" in name else 1) * FRAMES_PER_SECOND for name in SAVED}


def small_workflow(name: str) -> Prompt:
    """A shipped API prompt on the tiny model at a small size.

    A 0 stays: it is `segments` where each prompt makes one. The tiny text encoder and VAE exist only as a folder.
    """
    prompt = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    for item in prompt.values():
        for key, value in item["inputs"].items():
            if value and key in SMALL:
                item["inputs"][key] = SMALL[key]
    return with_folder_loader(prompt, TINY, tuple(SINGLE_FILE_LOADERS))


def find(prompt: Prompt, class_type: str) -> str:
    """The id of the only node of a type."""
    (found,) = (node_id for node_id, item in prompt.items() if item["class_type"] == class_type)
    return found


def saved_video(server: Any, prompt: Prompt, entry: dict) -> tuple[np.ndarray, float]:
    """What *Save Video* wrote, as `read_video`."""
    from host.client import outputs

    file = saved_file(prompt, outputs(entry))
    return read_video(io.BytesIO(server.download(file["filename"], file["subfolder"])))


def picture(shift: int) -> np.ndarray:
    """A color gradient of the size of the video; `shift` (0..255) changes it as a whole."""
    y, x = np.mgrid[0 : 255 : VIDEO_HEIGHT * 1j, 0 : 255 : VIDEO_WIDTH * 1j]
    return np.stack([x, y, np.full_like(x, shift)], axis=-1).astype(np.uint8)


def pictures(shifts: Iterable[int]) -> np.ndarray:
    """One `picture` per shift."""
    return np.stack([picture(shift) for shift in shifts])


@pytest.fixture(scope="module", autouse=True)
def input_folder(server: Any) -> Path:
    """The server's folder of inputs, with the image and the video of the workflows in it."""
    folder = server.base_directory / "input"
    Image.fromarray(picture(0)).save(folder / IMAGE)
    write_video(pictures(range(0, 10 * VIDEO_FRAMES, 10)), folder / VIDEO, FRAMES_PER_SECOND)
    return folder


def write_loras(models: Path, width: int) -> None:
    """Put small LoRAs of the workflows' names, in the official convention, where ComfyUI looks for them.

    Args:
        models: ComfyUI's folder of models.
        width: of the network that they are for.
    """
    folder = models / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    module = f"{OFFICIAL_PREFIX}{LORA_LAYER.replace('.', OFFICIAL_DOT)}"
    lora = {
        f"{module}.lora_down.weight": torch.full((1, width), 0.1),
        f"{module}.lora_up.weight": torch.full((width, 1), 0.1),
        f"{module}.alpha_scale": torch.tensor(0.5),
    }
    for name in LORAS:
        safetensors.torch.save_file(lora, folder / name)


@pytest.fixture(scope="module", autouse=True)
def loras(server: Any) -> None:
    """The LoRAs of the workflows, in the server's folder of models."""
    write_loras(server.base_directory / "models", TINY_WIDTH)


@pytest.mark.parametrize("name", sorted(path.stem for path in API.glob("*.json")))
def test_saves_a_video(server: Any, name: str) -> None:
    prompt = small_workflow(name)
    frames, frames_per_second = saved_video(server, prompt, server.run(prompt))
    height, width, _ = frames[0].shape
    assert (width, height, len(frames)) == SAVED[name]
    assert frames_per_second == SAVED_PER_SECOND[name]


def test_continuation_begins_with_the_whole_video(server: Any, input_folder: Path, report: list[str]) -> None:
    """Apart from being compressed a second time; the continuation itself looks nothing like it."""
    prompt = small_workflow("longcat_continuation")
    prompt[find(prompt, "LongCatSampler")]["inputs"]["seed"] = 1
    frames, _ = saved_video(server, prompt, server.run(prompt))
    given, _ = read_video(str(input_folder / VIDEO))
    difference = np.abs(np.float32(frames[:VIDEO_FRAMES]) - np.float32(given)).mean(axis=(1, 2, 3))
    new = np.abs(np.float32(frames[VIDEO_FRAMES:]) - np.float32(given[-1])).mean(axis=(1, 2, 3))
    report.append(
        f"continuation, mean difference of 255: given frames <= {difference.max():.1f}, new >= {new.min():.1f}"
    )
    assert difference.max() < 4
    assert new.min() > 40


def test_every_second_frame_of_a_faster_video(server: Any, input_folder: Path) -> None:
    """*Sample Video Frame*, as the note in the workflow says: 41 frames at 30 per second become 21."""
    shifts = range(0, 5 * 41, 5)
    write_video(pictures(shifts), input_folder / "fast.mp4", 2 * FRAMES_PER_SECOND)
    prompt = small_workflow("longcat_continuation")
    video, components = find(prompt, "LoadVideo"), find(prompt, "GetVideoComponents")
    prompt[video]["inputs"]["file"] = "fast.mp4"
    sampling = {"video": [video, 0], "num_frames": 21, "strategy": "uniform", "seed": 0}
    prompt["every second"] = {"class_type": "VideoFrameSample", "inputs": sampling}
    prompt[components]["inputs"]["video"] = ["every second", 0]
    frames, frames_per_second = saved_video(server, prompt, server.run(prompt))
    assert (len(frames), frames_per_second) == (21 + NEW, FRAMES_PER_SECOND)
    blue = [frame[..., 2].mean() for frame in frames[:21]]
    assert blue == pytest.approx(list(shifts[::2]), abs=4)
