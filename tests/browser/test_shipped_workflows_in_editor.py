"""Every shipped workflow in the graph editor: opened from the templates, and run."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect
from test_shipped_workflows import NEW, SAVED, SAVED_PER_SECOND, SINGLE_FILE_LOADERS, SMALL
from toy.workflows import GIVEN_FRAMES, MODEL, SIZE

from .conftest import TOY_FILE, TOY_PROMPT
from .editor import Editor

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
ON_TOY = SMALL | {"folder": MODEL, "unet_name": TOY_FILE, "steps": 12}
OF_THE_GIVEN_VIDEO = {
    "longcat_continuation": (SIZE, SIZE, GIVEN_FRAMES + NEW),
    "longcat_refine_video": (SIZE, SIZE, 2 * GIVEN_FRAMES),
}

Json = dict[str, Any]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def load(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8"))


def test_opens_from_the_templates(editor: Editor, path: Path) -> None:
    saved = load(path)
    with editor.template_card(path.stem) as card:
        width, height = Image.open(path.with_suffix(".jpg")).size
        expect(card.locator("img")).to_have_js_property("naturalWidth", width)
        expect(card.locator("img")).to_have_js_property("naturalHeight", height)
        card.click()
    editor.wait_until_open(path.stem, len(saved["nodes"]))
    editor.take_picture(f"{path.stem}_opened", fit=True)
    assert editor.missing_types() == []
    values = {node["id"]: node["widgets_values"] for node in saved["nodes"] if "widgets_values" in node}
    assert editor.widget_values() == values
    assert editor.prompt() == load(path.parent / "api" / path.name)


def test_runs_and_shows_its_video(editor: Editor, path: Path) -> None:
    editor.open_file(path, len(load(path)["nodes"]))
    editor.make_small(TOY_PROMPT, ON_TOY, SINGLE_FILE_LOADERS)
    outcome = editor.run()
    assert outcome["type"] == "execution_success", outcome
    video = editor.page.locator("video[src*='subfolder=video&']")
    expect(video).to_be_visible()
    editor.page.wait_for_function("video => video.readyState > 0", arg=video.element_handle())
    editor.take_picture(f"{path.stem}_finished", fit=True)
    width, height, frames = (SAVED | OF_THE_GIVEN_VIDEO)[path.stem]
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [width, height]
    assert video.evaluate("video => video.duration") == pytest.approx(frames / SAVED_PER_SECOND[path.stem], abs=0.02)
