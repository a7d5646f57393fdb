"""The subgraph blueprints: what the graph editor needs of their files, and what they do in a real server."""

import io
import itertools
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import (
    ABSOLUTE_PATH,
    PACK,
    WIDGET_TYPES,
    Json,
    Link,
    api_node,
    check_links,
    check_nodes,
    executed,
    inputs,
    served,
)
from host.videos import read_video

BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))
TEXT_TO_VIDEO, IMAGE_TO_VIDEO, EXTEND = (
    f"{task} (LongCat-Video)" for task in ("Text to Video", "Image to Video", "Extend Video")
)
CATEGORY = "Video generation and editing/"
INPUT_NODE, OUTPUT_NODE = -10, -20  # what links from and to the outside name as their node

SEGMENT, SHARED = 17, 5  # frames
SMALL = {"length": SEGMENT, "steps": 2}
SIZE = {"width": 96, "height": 64, "folder": "tiny-random"}


pytestmark = pytest.mark.usefixtures("core_nodes")


@pytest.fixture(params=BLUEPRINTS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def blueprint(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def subgraph(blueprint: Json) -> Json:
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    return subgraph


def links(subgraph: Json) -> Iterator[Link]:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    for link in subgraph["links"]:
        yield tuple(link[name] for name in names)


def expanded(name: str, host: str, values: Json) -> tuple[Json, dict[str, list]]:
    """What the graph editor makes of a subgraph node when it queues the prompt: its inner nodes in the API format.

    Args:
        name: of the blueprint.
        host: the id of the subgraph node; the ids of the inner nodes begin with it.
        values: of its inputs, or the node and output that each is linked to; widgets that are not named stay.

    Returns:
        the nodes by id, and by name of each output the node and output that give it.
    """
    file = json.loads((PACK / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    (subgraph,) = file["definitions"]["subgraphs"]
    assert values.keys() <= {slot["name"] for slot in subgraph["inputs"]}
    sources: dict[int, Any] = {
        link: [f"{host}:{source}", out] for link, source, out, *_ in links(subgraph) if source != INPUT_NODE
    }
    sources |= {link: values[i["name"]] for i in subgraph["inputs"] if i["name"] in values for link in i["linkIds"]}
    prompt = {f"{host}:{node['id']}": api_node(node, sources) for node in executed(subgraph)}
    return prompt, {slot["name"]: sources[slot["linkIds"][0]] for slot in subgraph["outputs"]}


def save(video: list) -> Json:
    settings = {"filename_prefix": "blueprint/video", "format": "auto", "codec": "auto"}
    return {"class_type": "SaveVideo", "inputs": {"video": video, **settings}}


def saved_frames(server: Any, entry: Json, node_id: str) -> np.ndarray:
    """Frames `[F, height, width, 3]`, 0..255, that *Save Video* wrote."""
    from host.client import outputs

    (file,) = outputs(entry)[node_id]["images"]
    frames, _ = read_video(io.BytesIO(server.download(file["filename"], file["subfolder"])))
    return frames


def test_holds_one_subgraph_node(path: Path, blueprint: Json, subgraph: Json) -> None:
    """The editor shows the name of the file, and the description and category of the subgraph."""
    (host,) = blueprint["nodes"]
    assert host["type"] == subgraph["id"]
    assert host["title"] == subgraph["name"] == path.stem
    assert host["properties"]["cnr_id"] == "longcat-video"
    assert host["id"] not in {node["id"] for node in subgraph["nodes"]}
    assert subgraph["category"].startswith(CATEGORY)
    assert len(subgraph["description"]) > 100


def test_ids_are_unique(blueprint: Json, subgraph: Json) -> None:
    slots = [slot["id"] for side in ("inputs", "outputs") for slot in subgraph[side]]
    ids = [blueprint["id"], subgraph["id"], *slots]
    assert len({uuid.UUID(each) for each in ids}) == len(ids)
    assert subgraph["state"]["lastNodeId"] == blueprint["last_node_id"] == blueprint["nodes"][0]["id"]
    assert subgraph["state"]["lastLinkId"] == max(link for link, *_ in links(subgraph))


def test_has_only_core_nodes_and_ours(subgraph: Json) -> None:
    check_nodes(subgraph)


def test_links_have_two_ends(subgraph: Json) -> None:
    outer = {
        (link, node, index, slot["type"])
        for node, side in ((INPUT_NODE, "inputs"), (OUTPUT_NODE, "outputs"))
        for index, slot in enumerate(subgraph[side])
        for link in slot["linkIds"]
    }
    check_links(subgraph, links(subgraph), outer)


def test_slots_outside_are_those_inside(blueprint: Json, subgraph: Json) -> None:
    """An input has a widget if all that it leads to have one; nothing else makes the editor promote it."""
    (host,) = blueprint["nodes"]
    targets = {link: (target, into) for link, _, _, target, into, _ in links(subgraph)}
    inner = {node["id"]: node for node in subgraph["nodes"]}
    for shown, declared in zip(host["inputs"], subgraph["inputs"], strict=True):
        assert (shown["name"], shown["type"], shown.get("label")) == (
            declared["name"],
            declared["type"],
            declared.get("label"),
        )
        assert declared["linkIds"]
        for target, into in (targets[link] for link in declared["linkIds"]):
            slot = inner[target]["inputs"][into]
            kinds = {name: kind for name, kind, _ in inputs(inner[target]["type"])}
            assert ("widget" in shown) == (kinds[slot["name"]] in WIDGET_TYPES) == ("widget" in slot)
    outside, inside = ([(slot["name"], slot["type"]) for slot in side["outputs"]] for side in (host, subgraph))
    assert outside == inside


def test_names_no_place_of_one_computer(subgraph: Json) -> None:
    values = [value for node in subgraph["nodes"] for value in node["widgets_values"]]
    assert [value for value in values if isinstance(value, str) and ABSOLUTE_PATH.search(value)] == []


def test_the_server_offers_them(server: Any) -> None:
    found = [entry for entry in served(server, "/global_subgraphs").values() if entry["source"] == "custom_node"]
    assert (
        {entry["name"] for entry in found}
        == {TEXT_TO_VIDEO, IMAGE_TO_VIDEO, EXTEND}
        == {path.stem for path in BLUEPRINTS}
    )


def test_animates_the_image(server: Any) -> None:
    """Of the size that is asked for, and of the image: another one gives another video."""
    prompt = {}
    for host, color in (("1", 0xFFFFFF), ("2", 0x0000FF)):
        prompt[f"image {host}"] = {
            "class_type": "EmptyImage",
            "inputs": {"width": 192, "height": 128, "batch_size": 1, "color": color},
        }
        values = {"prompt": "a ball", "image": [f"image {host}", 0], "size": "custom", **SIZE, **SMALL}
        nodes, outputs = expanded(IMAGE_TO_VIDEO, host, values)
        prompt |= nodes | {f"save {host}": save(outputs["VIDEO"])}
    entry = server.run(prompt)
    white, blue = (saved_frames(server, entry, f"save {host}") for host in (1, 2))
    assert white.shape == blue.shape == (SEGMENT, 64, 96, 3)
    assert np.abs(np.float32(white) - np.float32(blue)).mean() > 3


def test_chain_makes_one_video(server: Any, report: list[str]) -> None:
    """Text to video, extended twice, with the shared frames taken from what was there."""
    prompt, first = expanded(TEXT_TO_VIDEO, "1", {"prompt": "a red ball", **SIZE, **SMALL})
    prompt["save 1"] = save(first["VIDEO"])
    models, last = {name.lower(): first[name] for name in ("MODEL", "CLIP", "VAE")}, first
    for host in ("2", "3"):
        linked = {**models, "latent": last["LATENT"], "source": last["IMAGE"]}
        settings = {"prompt": f"it rolls {host}", "num_cond_frames": SHARED, "seed": int(host), **SMALL}
        segment, last = expanded(EXTEND, host, linked | settings)
        prompt |= segment | {f"save {host}": save(last["VIDEO"])}
    entry = server.run(prompt)
    videos = [saved_frames(server, entry, f"save {host}") for host in (1, 2, 3)]
    new = SEGMENT - SHARED
    assert [video.shape for video in videos] == [(SEGMENT + n * new, 64, 96, 3) for n in range(3)]
    for shorter, longer in itertools.pairwise(videos):
        kept = np.abs(np.float32(longer[: len(shorter)]) - np.float32(shorter)).mean()
        moved = np.abs(np.float32(longer[len(shorter) :]) - np.float32(shorter[-1])).mean()
        report.append(f"blueprints, mean difference of 255: kept frames {kept:.2f}, new ones {moved:.1f}")
        assert kept < 3
        assert moved > 10
