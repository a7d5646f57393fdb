"""What the template browser offers: the shipped workflows, as graphs and as prompts."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import execution
import folder_paths
import nodes
import pytest
from graphs import (
    ABSOLUTE_PATH,
    MODEL_FOLDERS,
    PACK,
    Json,
    api_node,
    check_links,
    check_nodes,
    executed,
    notes,
    shown,
)

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
API = PACK / "workflows" / "api"
JPEG_START = b"\xff\xd8\xff"
THUMBNAIL_BYTES = 60_000
INPUT_FILES = {"LoadImage": "image", "LoadVideo": "file"}

RELEASED = "meituan-longcat/LongCat-Video"
COMFY_ORG = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
KIJAI = "https://huggingface.co/Kijai/LongCat-Video_comfy/resolve/main"
LORAS = f"https://huggingface.co/{RELEASED}/resolve/main/lora"
PUBLISHED = {
    "LongCat_TI2V_comfy_bf16.safetensors": f"{KIJAI}/LongCat_TI2V_comfy_bf16.safetensors",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": f"{COMFY_ORG}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "wan_2.1_vae.safetensors": f"{COMFY_ORG}/vae/wan_2.1_vae.safetensors",
    "cfg_step_lora.safetensors": f"{LORAS}/cfg_step_lora.safetensors",
    "refinement_lora.safetensors": f"{LORAS}/refinement_lora.safetensors",
}
LINKS = {f"https://huggingface.co/{RELEASED}", *PUBLISHED.values()}
DEFAULTS = {
    **{"folder": "LongCat-Video", "weight_dtype": "default", "width": 832, "height": 480, "length": 93},
    **{"num_cond_frames": 13, "overlap": 13, "steps": 50, "cfg": 4, "denoise": 1, "fps": 15, "batch_size": 1},
    **{"sampler_name": "euler", "scheduler": "longcat", "tiling": "auto", "policy": "auto", "type": "wan"},
    **{"threshold": 0.5, "strength_model": 1, "sparsity": 0.9375, "backend": "auto", "cdf": 0},
    **{"chunk_frames": 4, "chunk_height": 4, "chunk_width": 4},
}
REFINED_SIZE = {"size": "720p", "width": 1280, "height": 704}
OF_NODES = {"LongCatRefineLatent": REFINED_SIZE | {"num_cond_frames": 26}, "LongCatRefineVideo": REFINED_SIZE}
OF_MODES = {"distill": {"steps": 16, "cfg": 1}, "refine": {"cfg": 1}}
OF_REFINED_VIDEOS = {"CreateVideo": {"fps": 30}}
DISTILLED, REFINING = "cfg_step_lora.safetensors", "refinement_lora.safetensors"
LORA_OF_MODE = {"distill": DISTILLED, "refine": REFINING, "spatial+temporal": REFINING}
NEEDED = "dit/ text_encoder/ tokenizer/ vae/ scheduler/"
MODES = {
    "longcat_t2v": {"LongCatSigmas": ["base"]},
    "longcat_t2v_ksampler": {},
    "longcat_i2v": {"LongCatSampler": ["base"]},
    "longcat_continuation": {"LongCatSampler": ["enhance_hf"]},
    "longcat_extend": {"LongCatSampler": ["base", "enhance_hf"]},
    "longcat_long": {"LongCatStoryboard": ["enhance_hf"]},
    "longcat_interactive": {"LongCatStoryboard": ["enhance_hf"]},
    "longcat_t2v_refine": {"LongCatSampler": ["base", "refine"], "LongCatRefineLatent": ["spatial+temporal"]},
    "longcat_distill_refine": {"LongCatSampler": ["distill", "refine"], "LongCatRefineLatent": ["spatial+temporal"]},
    "longcat_refine_video": {"LongCatRefineVideo": ["spatial+temporal"]},
    "longcat_long_refine": {"LongCatStoryboard": ["enhance_hf"], "LongCatRefineVideo": ["spatial+temporal"]},
}


pytestmark = pytest.mark.usefixtures("core_nodes")


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def workflow(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8"))


def title(node: Json) -> str:
    return node.get("title") or nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node["type"]) or node["type"]


def to_api(workflow: Json) -> Json:
    """The API format of a workflow, as the graph editor's "Export (API)" writes it."""
    sources = {link: [str(source), slot] for link, source, slot, *_ in workflow["links"]}
    return {str(node["id"]): api_node(node, sources) | {"_meta": {"title": title(node)}} for node in executed(workflow)}


def test_every_prompt_is_a_workflow_too() -> None:
    assert [path.name for path in WORKFLOWS] == sorted(path.name for path in API.iterdir())


def test_has_a_thumbnail(path: Path) -> None:
    """The template browser shows `<name>.jpg`."""
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture.startswith(JPEG_START)
    assert len(picture) < THUMBNAIL_BYTES


def test_has_only_core_nodes_and_ours(workflow: Json) -> None:
    check_nodes(workflow)
    assert workflow["last_node_id"] == max(node["id"] for node in workflow["nodes"])


def test_links_have_two_ends(workflow: Json) -> None:
    check_links(workflow, workflow["links"])
    assert workflow["last_link_id"] == max(link for link, *_ in workflow["links"])


def test_is_the_api_prompt_of_the_same_name(path: Path, workflow: Json) -> None:
    assert to_api(workflow) == json.loads((API / path.name).read_text(encoding="utf-8"))


def test_core_accepts_the_prompt(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types, ranges and choices are right, given files of the names that the prompt asks for."""
    prompt = json.loads((API / path.name).read_text(encoding="utf-8"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    for node in prompt.values():
        if node["class_type"] in INPUT_FILES:
            (tmp_path / node["inputs"][INPUT_FILES[node["class_type"]]]).touch()
        for name in MODEL_FOLDERS.keys() & node["inputs"].keys():
            model = tmp_path / node["inputs"][name]
            if model.suffix:
                model.touch()
            else:
                (model / "dit").mkdir(parents=True)
            place = ([str(tmp_path)], {model.suffix})
            monkeypatch.setitem(folder_paths.folder_names_and_paths, MODEL_FOLDERS[name], place)
    valid, error, _, node_errors = asyncio.run(execution.validate_prompt("id", prompt, None))
    assert valid, (error, node_errors)
    assert node_errors == {}


def test_has_the_settings_of_the_released_model(path: Path, workflow: Json) -> None:
    refined = any(node["type"] in OF_NODES for node in executed(workflow))
    modes: dict[str, list[str]] = {}
    for node in executed(workflow):
        kind, values = node["type"], shown(node)
        right = DEFAULTS | OF_NODES.get(kind, {}) | OF_MODES.get(values.get("mode", ""), {})
        right |= OF_REFINED_VIDEOS.get(kind, {}) if refined else {}
        different = {name: values[name] for name in right.keys() & values.keys() if values[name] != right[name]}
        assert different == {}, kind
        if "mode" in values:
            modes.setdefault(kind, []).append(values["mode"])
    assert modes == MODES[path.stem]


def model_patches(prompt: Json, source: list) -> Iterator[Json]:
    """The nodes between a loader and a MODEL that it becomes."""
    node = prompt[source[0]]
    if "model" in node["inputs"]:
        yield node
        yield from model_patches(prompt, node["inputs"]["model"])


def test_samples_with_the_lora_of_the_mode(path: Path) -> None:
    """And with no other; block-sparse attention belongs to the LoRA that was trained with it."""
    prompt = json.loads((API / path.name).read_text(encoding="utf-8"))
    for inputs in (node["inputs"] for node in prompt.values()):
        if {"model", "mode"} <= inputs.keys():
            patches = list(model_patches(prompt, inputs["model"]))
            loras = [patch["inputs"]["lora_name"] for patch in patches if "lora_name" in patch["inputs"]]
            assert loras == [LORA_OF_MODE[mode] for mode in [inputs["mode"]] if mode in LORA_OF_MODE]
            sparse = any(patch["class_type"] == "LongCatBlockSparseAttention" for patch in patches)
            assert sparse == (REFINING in loras)


def test_names_no_place_of_one_computer(workflow: Json) -> None:
    values = [value for node in workflow["nodes"] for value in node["widgets_values"]]
    assert [value for value in values if isinstance(value, str) and ABSOLUTE_PATH.search(value)] == []


def test_note_says_what_a_newcomer_needs(workflow: Json) -> None:
    """Which files, in which folders, what to change; the editor cannot offer to download a model folder."""
    text = notes(workflow)
    assert "### Files" in text
    assert "### Change this first" in text
    for node in executed(workflow):
        for name in MODEL_FOLDERS.keys() & shown(node).keys():
            assert shown(node)[name] in text
            assert MODEL_FOLDERS[name] in text
        if node["type"] == "LongCatLoader":
            assert f"`hf download {RELEASED} {NEEDED}" in text
            assert f" --local-dir models/longcat/{shown(node)['folder']}`" in text
    change = text.partition("### Change this first")[2].partition("###")[0]
    there = {title(node) for node in executed(workflow)} | {name for node in executed(workflow) for name in shown(node)}
    to_change = set(re.findall(r"\*\*([A-Za-z][^*]+)\*\*", change))
    assert to_change
    assert to_change <= there


def test_note_links_only_to_what_is_known_to_exist(workflow: Json) -> None:
    found = set(re.findall(r"\w+://[^\s)`>\"]+", notes(workflow)))
    assert found
    assert found <= LINKS


def test_single_files_can_be_downloaded_from_the_editor(workflow: Json) -> None:
    """`models` is what the editor's list of missing models takes name, place and address from."""
    for node in executed(workflow):
        values = shown(node)
        files = {name: values[name] for name in MODEL_FOLDERS.keys() & values.keys() if Path(values[name]).suffix}
        offered = [
            {"name": file, "url": PUBLISHED[file], "directory": MODEL_FOLDERS[name]} for name, file in files.items()
        ]
        assert node["properties"].get("models", []) == offered
