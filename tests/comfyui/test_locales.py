"""The Chinese texts: one for everything that the graph editor shows of our nodes, in the places where it looks.

It has no place for the choices of a combo, and it translates outputs that are named after their type by itself.
"""

import json
import re
from collections import Counter
from typing import Any

import nodes
import pytest
from graphs import PACK, Json, inputs, our_nodes, served

LOCALES = PACK / "locales"
CHINESE = re.compile(r"[\u4e00-\u9fff]")
KEPT_TERMS = {"Latent", "CLIP", "VAE", "CFG", "LongCat Latent", "LongCat Sigmas", "LongCat CFG-Zero*"}
MESSAGE_SYNTAX = set("@{}|")  # what the editor's translations are compiled from; tooltips are taken as they are


@pytest.fixture
def texts() -> Json:
    return json.loads((LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


def key(name: str) -> str:
    """A node id or an input name as the editor looks it up."""
    return name.replace(".", "_")


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+(?:\.\d+)?", text))


def test_every_node_has_its_texts_and_nothing_else(texts: Json) -> None:
    assert list(texts) == [key(node_id) for node_id in our_nodes()]
    for node_id in our_nodes():
        entry = texts[key(node_id)]
        assert entry.keys() == {"display_name", "description", "inputs", "outputs"}
        assert list(entry["inputs"]) == [key(name) for name, *_ in inputs(node_id)]
        outputs = nodes.NODE_CLASS_MAPPINGS[node_id]
        assert list(entry["outputs"]) == [str(index) for index in range(len(outputs.RETURN_TYPES))]
        for slot in entry["inputs"].values():
            assert slot.keys() == {"name", "tooltip"}
        named = zip(outputs.RETURN_NAMES, outputs.RETURN_TYPES, entry["outputs"].values(), strict=True)
        for name, kind, slot in named:
            assert slot.keys() == ({"tooltip"} if name == kind else {"name", "tooltip"})


def test_is_chinese_and_keeps_the_terms_of_the_field(texts: Json) -> None:
    for entry in texts.values():
        assert entry["display_name"].startswith("LongCat")
        shown = [entry["display_name"], entry["description"], *(slot["name"] for slot in entry["inputs"].values())]
        for text in shown:
            assert CHINESE.search(text) or text in KEPT_TERMS, text
            assert not MESSAGE_SYNTAX & set(text), text
        for slot in (*entry["inputs"].values(), *entry["outputs"].values()):
            assert CHINESE.search(slot["tooltip"]) or slot["tooltip"] in ("LongCat-Video。", "Wan 2.1 VAE。")


def test_has_the_numbers_of_the_english_texts(texts: Json) -> None:
    """A range or a default that changes there has to change here."""
    for node_id in our_nodes():
        node, entry = nodes.NODE_CLASS_MAPPINGS[node_id], texts[key(node_id)]
        assert numbers(node.DESCRIPTION) <= numbers(entry["description"]), node_id
        for name, _, options in inputs(node_id):
            english = numbers(options.get("tooltip", ""))
            assert english <= numbers(entry["inputs"][key(name)]["tooltip"]), f"{node_id}.{name}"


def test_choices_are_called_by_their_names(texts: Json) -> None:
    for node_id in our_nodes():
        for name, kind, options in inputs(node_id):
            english, chinese = options.get("tooltip", ""), texts[key(node_id)]["inputs"][key(name)]["tooltip"]
            mentioned = [choice for choice in options.get("options", []) if kind == "COMBO" and choice in english]
            assert [choice for choice in mentioned if choice not in chinese] == [], f"{node_id}.{name}"


def test_the_server_serves_them(server: Any, texts: Json) -> None:
    assert served(server, "/i18n") == {"zh": {"nodeDefs": texts}}
