"""How a user of the graph editor finds the pack's nodes and blueprints, and reads about them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from .editor import Editor, open_editor, words

PACK = Path(__file__).resolve().parents[2]
HELP_PAGES = sorted((PACK / "web" / "docs").glob("*.md"))
BLUEPRINTS = sorted((PACK / "subgraphs").glob("*.json"))
CHINESE = PACK / "locales" / "zh" / "nodeDefs.json"
TITLES = "ids => Object.fromEntries(ids.map(id => [id, LiteGraph.registered_node_types[id]?.title]))"


def display_names(server: Any) -> dict[str, str]:
    """The names of our nodes by their ids."""
    return {
        node_id: item["display_name"]
        for node_id, item in server.object_info().items()
        if item["python_module"] == "custom_nodes.longcat-video"
    }


def test_typing_longcat_finds_every_node(editor: Editor, server: Any) -> None:
    names = display_names(server).values()
    assert names
    results = editor.search("longcat")
    for name in names:
        expect(editor.found(results, name)).to_be_visible()
    editor.take_picture("search_longcat")


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("image to video", ["Image to Video (LongCat-Video)", "LongCat Latent"]),
        (
            "text to video",
            ["Text to Video (LongCat-Video)", "LongCat Text Encode", "LongCat Latent", "LongCat Sampler"],
        ),
        (
            "extend",
            [
                "Extend Video (LongCat-Video)",
                "LongCat Continue Latent",
                "LongCat Latent",
                "LongCat Storyboard",
                "LongCat Join",
            ],
        ),
    ],
)
def test_typing_a_task_finds_the_nodes_for_it(editor: Editor, typed: str, names: list[str]) -> None:
    results = editor.search(typed)
    for name in names:
        expect(editor.found(results, name)).to_be_visible()
    editor.take_picture(f"search_{typed.replace(' ', '_')}")


def test_every_node_has_a_help_page(server: Any) -> None:
    assert [page.stem for page in HELP_PAGES] == sorted(display_names(server))


@pytest.mark.parametrize("page", HELP_PAGES, ids=lambda page: page.stem)
def test_help_panel_shows_the_page(editor: Editor, page: Path) -> None:
    panel = editor.show_help(page.stem)
    written = words(page.read_text(encoding="utf-8"))
    expect(panel).to_contain_text(re.compile(r"\W+".join(written[-5:])), use_inner_text=True)
    editor.take_picture(f"help_{page.stem}")
    assert words(panel.inner_text()) == written
    assert panel.locator("img").evaluate_all("images => images.filter(image => !image.naturalWidth)") == []


def test_there_are_blueprints() -> None:
    assert BLUEPRINTS, "subgraphs/ has no blueprint"


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_blueprint_is_found_and_can_be_placed(editor: Editor, path: Path) -> None:
    result = editor.found(editor.search(path.stem), path.stem)
    expect(result).to_contain_text("Blueprint")
    editor.place(result)
    editor.take_picture(f"blueprint_{path.stem.replace(' ', '_')}", fit=True)
    inside = editor.page.evaluate("app.graph.nodes[0].subgraph.nodes.length")
    (definition,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    assert inside == len(definition["nodes"])
    assert editor.missing_types() == []


def test_names_are_chinese_in_a_chinese_browser(browser: Browser, server: Any, artifacts: Path) -> None:
    """The editor takes its language from the browser until a user chooses another."""
    names = {node_id: item["display_name"] for node_id, item in json.loads(CHINESE.read_text("utf-8")).items()}
    assert names.keys() == display_names(server).keys()
    with open_editor(browser, "zh-CN", server.address, artifacts) as editor:
        editor.start_blank()
        assert editor.page.evaluate("app.extensionManager.setting.get('Comfy.Locale')") == "zh"
        assert editor.page.evaluate(TITLES, list(names)) == names
        expect(editor.found(editor.search("longcat"), names["LongCatLoader"])).to_be_visible()
        editor.take_picture("search_longcat_zh")
