"""What the graph editor shows of the pack: the shipped workflows and the help pages."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import execution
import folder_paths
import nodes
import pytest

Json = dict[str, Any]

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
API = PACK / "workflows" / "api"
JPEG_START = b"\xff\xd8\xff"
THUMBNAIL_BYTES = 60_000
NOTES = ("MarkdownNote", "Note")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3", "IMAGEUPLOAD")
UPLOADS = ("image_upload", "video_upload")
EDITOR_ONLY = ("control_after_generate", "upload")
MODEL_FOLDERS = {"folder": "longcat", "unet_name": "diffusion_models", "clip_name": "text_encoders", "vae_name": "vae"}
INPUT_FILES = {"LoadImage": "image", "LoadVideo": "file"}


@pytest.fixture(scope="module", autouse=True)
def core_nodes() -> None:
    """All of core's nodes, as a server has them."""
    asyncio.run(nodes.init_builtin_extra_nodes())


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def workflow(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8"))


def executed(workflow: Json) -> list[Json]:
    """The nodes of a workflow that run."""
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def ours(node_id: str) -> bool:
    module = getattr(nodes.NODE_CLASS_MAPPINGS[node_id], "RELATIVE_PYTHON_MODULE", "nodes")
    return module.startswith("custom_nodes.")


def inputs(node_id: str) -> Iterator[tuple[str, str, Json]]:
    """Name, type and options of each input in the order in which the graph editor builds them.

    Behind a choice of files it puts a button.
    """
    declared = nodes.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    for section in ("required", "optional"):
        for name, (kind, *options) in declared.get(section, {}).items():
            yield name, kind if isinstance(kind, str) else "COMBO", options[0] if options else {}
            if options and any(options[0].get(upload) for upload in UPLOADS):
                yield "upload", "IMAGEUPLOAD", {}


def widgets(node_id: str) -> list[str]:
    """Names of the widgets, in the order of `widgets_values`; a seed has a second widget.

    The further widgets that a choice of a dynamic combo can bring are not known here.
    """
    return [
        widget
        for name, kind, options in inputs(node_id)
        if kind in WIDGET_TYPES
        for widget in ([name, "control_after_generate"] if options.get("control_after_generate") else [name])
    ]


def title(node: Json) -> str:
    return node.get("title") or nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node["type"]) or node["type"]


def to_api(workflow: Json) -> Json:
    """The API format of a workflow, as the graph editor's "Export (API)" writes it."""
    sources = {link: [str(source), slot] for link, source, slot, *_ in workflow["links"]}
    prompt = {}
    for node in executed(workflow):
        shown = dict(zip(widgets(node["type"]), node["widgets_values"], strict=True))
        values = {name: value for name, value in shown.items() if name not in EDITOR_ONLY}
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": values | linked,
            "_meta": {"title": title(node)},
        }
    return prompt


def test_every_prompt_is_a_workflow_too() -> None:
    assert [path.name for path in WORKFLOWS] == sorted(path.name for path in API.iterdir())


def test_has_a_thumbnail(path: Path) -> None:
    """The template browser shows `<name>.jpg`."""
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture.startswith(JPEG_START)
    assert len(picture) < THUMBNAIL_BYTES


def test_has_only_core_nodes_and_ours(workflow: Json) -> None:
    """`cnr_id` is where the editor offers to install a missing node from."""
    for node in executed(workflow):
        assert node["properties"]["Node name for S&R"] == node["type"]
        assert node["properties"]["cnr_id"] == ("longcat-video" if ours(node["type"]) else "comfy-core")


def test_slots_are_those_of_the_nodes(workflow: Json) -> None:
    for node in executed(workflow):
        declared = {name: kind for name, kind, _ in inputs(node["type"])}
        assert {slot["name"]: slot["type"] for slot in node["inputs"]} == declared
        outputs = nodes.NODE_CLASS_MAPPINGS[node["type"]].RETURN_TYPES
        assert [slot["type"] for slot in node["outputs"]] == list(outputs)


def test_links_have_two_ends(workflow: Json) -> None:
    def slots(side: str) -> Iterator[tuple[int, int, str, Any]]:
        for node in workflow["nodes"]:
            for index, slot in enumerate(node[side]):
                yield node["id"], index, slot["type"], slot

    starts = {(link, *end) for *end, slot in slots("outputs") for link in slot["links"] or []}
    ends = {(slot["link"], *end) for *end, slot in slots("inputs") if slot["link"] is not None}
    assert starts == {(link, source, out, kind) for link, source, out, _, _, kind in workflow["links"]}
    assert ends == {(link, target, into, kind) for link, _, _, target, into, kind in workflow["links"]}


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


@pytest.mark.parametrize("node_id", [name for name in nodes.NODE_CLASS_MAPPINGS if ours(name)])
def test_help_page_names_every_input(node_id: str) -> None:
    page = (PACK / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert [name for name, *_ in inputs(node_id) if f"| `{name}` |" not in page] == []
