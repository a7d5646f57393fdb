"""The pack in a real ComfyUI server, over HTTP and websocket."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import av
import pytest

PACK = Path(__file__).resolve().parents[2]
TINY, TINY_FILE = "tiny-random", "tiny-random.safetensors"
Prompt = dict[str, dict]


def workflow(name: str, **changes: Any) -> Prompt:
    """A shipped API prompt on the tiny model at a small size; `changes` set inputs wherever they occur."""
    prompt = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text())
    small = {"folder": TINY, "unet_name": TINY_FILE, "width": 64, "height": 64, "length": 17, "steps": 3, "fps": 15.0}
    for item in prompt.values():
        for key, value in (small | changes).items():
            if key in item["inputs"]:
                item["inputs"][key] = value
    return prompt


def find(prompt: Prompt, class_type: str) -> str:
    """The id of the only node of a type."""
    (found,) = (node_id for node_id, item in prompt.items() if item["class_type"] == class_type)
    return found


def saved_video(server: Any, entry: dict) -> tuple[int, int, int, float]:
    """Width, height, frames and frames per second of the video that a prompt saved, read from the file."""
    from host.client import outputs

    (files,) = (out["images"] for out in outputs(entry).values() if "images" in out)
    data = server.download(files[0]["filename"], files[0]["subfolder"])
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return frames[0].width, frames[0].height, len(frames), float(stream.average_rate)


def test_text_to_video(server: Any) -> None:
    events = []
    prompt = workflow("longcat_t2v", width=96, height=64, length=21, fps=12.0, steps=4)
    entry = server.run(prompt, events.append)
    assert saved_video(server, entry) == (96, 64, 21, 12.0)
    sampler = find(prompt, "SamplerCustomAdvanced")
    steps = [e.data["value"] for e in events if e.type == "progress" and e.data["node"] == sampler]
    assert steps[-1] == 4
    assert any(e.image for e in events)


def test_stock_nodes(server: Any) -> None:
    """UNETLoader and KSampler; the tiny text encoder and VAE exist only as a folder."""
    prompt = workflow("longcat_t2v_ksampler")
    del prompt[find(prompt, "CLIPLoader")]
    loader = find(prompt, "VAELoader")
    prompt[loader] = {"class_type": "LongCatLoader", "inputs": {"folder": TINY}}
    for item in prompt.values():
        item["inputs"] |= {"clip": [loader, 1]} if "clip" in item["inputs"] else {}
        item["inputs"] |= {"vae": [loader, 2]} if "vae" in item["inputs"] else {}
    assert saved_video(server, server.run(prompt)) == (64, 64, 17, 15.0)


def test_one_node_sampler(server: Any) -> None:
    prompt = workflow("longcat_t2v")
    inputs = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent": ["4", 0]}
    sampler = find(prompt, "SamplerCustomAdvanced")
    settings = {"seed": 1, "steps": 3, "cfg": 4.0, "mode": "base"}
    prompt[sampler] = {"class_type": "LongCatSampler", "inputs": inputs | settings}
    assert saved_video(server, server.run(prompt)) == (64, 64, 17, 15.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"width": 70, "length": 18},
            "width must be a multiple of 16 (use 64 or 80), it is 70; length must be 4n+1 (use 17 or 21)",
        ),
        ({"folder": "LongCat-Video"}, "There is no model folder 'LongCat-Video'; found: longcat-toy, tiny-random"),
        ({"width": 1_600_000}, "width is 1600000; it must be from 16 to 16384"),
        ({"length": 0}, "length is 0; it must be from 1 to"),
        ({"width": "wide"}, "width, wide, invalid literal"),
        ({"steps": 60, "mode": "distill"}, "the distilled schedule has 50 sigmas"),
        ({"steps": 5000}, "steps is 5000; it must be from 1 to 1000"),
        ({"mode": "fast"}, "mode is 'fast'; it must be one of base, distill"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(server: Any, changes: dict, said: str) -> None:
    from host.client import PromptRejected

    with pytest.raises(PromptRejected) as refusal:
        server.post_prompt(workflow("longcat_t2v", **changes))
    assert said in str(refusal.value)


def test_linked_values_are_checked_when_the_node_runs(server: Any) -> None:
    prompt = workflow("longcat_t2v")
    for name, value in (("width", 80), ("steps", 2)):
        prompt[name] = {"class_type": "PrimitiveInt", "inputs": {"value": value}}
    prompt[find(prompt, "LongCatLatent")]["inputs"]["width"] = ["width", 0]
    prompt[find(prompt, "LongCatSigmas")]["inputs"]["steps"] = ["steps", 0]
    assert saved_video(server, server.run(prompt))[:2] == (80, 64)
    prompt["width"]["inputs"]["value"] = 81
    kind, error = server.run(prompt)["status"]["messages"][-1]
    assert kind == "execution_error"
    assert "width must be a multiple of 16 (use 80 or 96)" in error["exception_message"]


def test_folder_without_a_vae_is_an_error_in_the_history(server: Any) -> None:
    models = server.base_directory / "models" / "longcat"
    shutil.copytree(models / TINY, models / "no-vae", ignore=shutil.ignore_patterns("vae"))
    kind, error = server.run(workflow("longcat_t2v", folder="no-vae"))["status"]["messages"][-1]
    assert kind == "execution_error"
    assert error["node_type"] == "LongCatDecode"
    assert "The model folder no-vae has no vae/" in error["exception_message"]


def test_cancel_stops_at_once_and_loses_nothing(server: Any) -> None:
    server.run(workflow("longcat_t2v", noise_seed=11))
    saved = sorted((server.base_directory / "output" / "video").iterdir())
    after_cancel = []

    def cancel_at_third_step(event: Any) -> None:
        if event.type != "progress":
            return
        if event.data["value"] == 3:
            server.interrupt()
        if event.data["value"] > 3:
            after_cancel.append(event.data["value"])

    long = workflow("longcat_t2v", width=256, height=256, length=49, steps=100, noise_seed=12)
    entry = server.run(long, cancel_at_third_step)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert len(after_cancel) <= 1
    assert sorted((server.base_directory / "output" / "video").iterdir()) == saved
    assert saved_video(server, server.run(workflow("longcat_t2v", noise_seed=13))) == (64, 64, 17, 15.0)


def test_out_of_memory_is_cores_error_and_the_next_prompt_runs(server: Any) -> None:
    prompt = workflow("longcat_t2v", noise_seed=21)
    prompt["fault"] = {"class_type": "TestOutOfMemoryOnce", "inputs": {"model": ["1", 0]}}
    prompt[find(prompt, "LongCatCFGZero")]["inputs"]["model"] = ["fault", 0]
    kind, error = server.run(prompt)["status"]["messages"][-1]
    assert kind == "execution_error"
    assert "OutOfMemoryError" in error["exception_type"]
    assert "Allocation on device" in error["exception_message"]
    assert saved_video(server, server.run(workflow("longcat_t2v", noise_seed=22))) == (64, 64, 17, 15.0)


def test_all_nodes_describe_themselves(server: Any) -> None:
    """Every input has a tooltip or is a plain socket, and every node can be found by the words a user types."""
    info = {node_id: item for node_id, item in server.object_info().items() if node_id.startswith("LongCat")}
    assert len(info) == 14
    sockets = {"MODEL", "CLIP", "VAE", "LATENT", "CONDITIONING", "IMAGE"}
    for node_id, item in info.items():
        assert item["display_name"].startswith("LongCat ")
        assert item["description"]
        assert item["search_aliases"]
        declared = item["input"]["required"] | item["input"].get("optional", {})
        for name, (kind, *options) in declared.items():
            assert kind in sockets or options[0].get("tooltip"), f"{node_id}.{name}"
