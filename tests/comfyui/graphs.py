"""Read graph-editor JSON, of a workflow or of a subgraph, and hold its nodes against the loaded node classes."""

import json
import re
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nodes

Json = dict[str, Any]
Link = tuple[int, int, int, int, int, str]

PACK = Path(__file__).resolve().parents[2]
NOTES = ("MarkdownNote", "Note")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3", "IMAGEUPLOAD")
UPLOADS = ("image_upload", "video_upload")
EDITOR_ONLY = ("control_after_generate", "upload")
MODEL_FOLDERS = {
    **{"folder": "longcat", "unet_name": "diffusion_models", "clip_name": "text_encoders", "vae_name": "vae"},
    "lora_name": "loras",
}
ABSOLUTE_PATH = re.compile(r"(?<![\w/.:])/\w+/|\b[A-Za-z]:\\|~/|file:")


def executed(graph: Json) -> list[Json]:
    """The nodes of a graph that run."""
    return [node for node in graph["nodes"] if node["type"] not in NOTES]


def notes(graph: Json) -> str:
    """The text of a graph's notes."""
    return "\n".join(node["widgets_values"][0] for node in graph["nodes"] if node["type"] in NOTES)


def ours(node_id: str) -> bool:
    module = getattr(nodes.NODE_CLASS_MAPPINGS[node_id], "RELATIVE_PYTHON_MODULE", "nodes")
    return module.startswith("custom_nodes.")


def our_nodes() -> list[str]:
    """The ids of the pack's nodes, in their order."""
    return [node_id for node_id in nodes.NODE_CLASS_MAPPINGS if ours(node_id)]


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


def shown(node: Json) -> Json:
    """Values of a node's widgets by name."""
    return dict(zip(widgets(node["type"]), node["widgets_values"], strict=True))


def api_node(node: Json, sources: dict[int, Any]) -> Json:
    """A node in the API format; `sources` gives the node and output, or the value, that a link brings if any."""
    values = {name: value for name, value in shown(node).items() if name not in EDITOR_ONLY}
    linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] in sources}
    return {"class_type": node["type"], "inputs": values | linked}


def check_nodes(graph: Json) -> None:
    """All nodes are core's or ours, say which pack to get them from, and have their classes' slots and widgets."""
    for node in executed(graph):
        assert node["properties"]["Node name for S&R"] == node["type"]
        assert node["properties"]["cnr_id"] == ("longcat-video" if ours(node["type"]) else "comfy-core")
        declared = {name: kind for name, kind, _ in inputs(node["type"])}
        assert {slot["name"]: slot["type"] for slot in node["inputs"]} == declared
        outputs = nodes.NODE_CLASS_MAPPINGS[node["type"]].RETURN_TYPES
        assert [slot["type"] for slot in node["outputs"]] == list(outputs)
        assert len(node["widgets_values"]) == len(widgets(node["type"]))
    ids = [node["id"] for node in graph["nodes"]]
    assert len(ids) == len(set(ids))


def check_links(graph: Json, links: Iterable[Link], outer: Iterable[tuple[int, int, int, str]] = ()) -> None:
    """Every link has two ends, and every slot that names a link is one of them.

    Args:
        graph: has the nodes.
        links: id, source node, its output, target node, its input, type.
        outer: the ends that belong to no node: link, what it is the end of, slot, type.
    """

    def slots(side: str) -> Iterator[tuple[int, int, str, Json]]:
        for node in graph["nodes"]:
            for index, slot in enumerate(node[side]):
                yield node["id"], index, slot["type"], slot

    links = list(links)
    assert len({link for link, *_ in links}) == len(links)
    starts = {(link, *end) for *end, slot in slots("outputs") for link in slot["links"] or []}
    ends = {(slot["link"], *end) for *end, slot in slots("inputs") if slot["link"] is not None}
    named = {(link, source, out, kind) for link, source, out, _, _, kind in links}
    named |= {(link, target, into, kind) for link, _, _, target, into, kind in links}
    assert starts | ends | set(outer) == named


def served(server: Any, route: str) -> Json:
    """The JSON that a running server has at a route."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{server.address}{route}", timeout=30) as answer:
        return json.load(answer)
