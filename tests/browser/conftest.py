"""A real server with the pack, and the real graph editor in a headless Chromium.

Playwright keeps an event loop running in this thread, in which `asyncio.run` of other tests fails. So its fixtures
have this package's scope: they end with its last test.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host.process import Host
from host.server import running_server
from playwright.sync_api import Browser, Error, expect, sync_playwright
from toy.workflows import MODEL, install_toy, write_given_files

from .chromium import INSTALL, OTHER, find_chromium
from .editor import Editor, open_editor

PACK = Path(__file__).resolve().parents[2]
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
TOY_FILE, TOY_WIDTH = "longcat-toy.safetensors", 192
TOY_PROMPT = "a red circle moving right on a white background"
PATIENCE = 60_000  # milliseconds until something that should appear is missed
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Pointer.DoubleClickTime": 1000,  # milliseconds; a busy machine takes longer than the usual 300
}
PLAYS_H264 = "document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"') !== ''"


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server with the model and with the input files that the workflows name."""
    base = tmp_path_factory.mktemp("browser-server")
    write_model(base / "models")
    for workflow in (PACK / "workflows" / "api").glob("*.json"):
        write_given_files(base / "input", json.loads(workflow.read_text(encoding="utf-8")), TOY_PROMPT)
    (base / "user" / "default").mkdir(parents=True)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    host = Host(comfyui=Path(os.environ["COMFYUI_PATH"]), python=Path(sys.executable))
    with running_server(host, base, PACK, cpu=True) as client:
        yield client


def write_model(models: Path) -> None:
    """Put the toy model into ComfyUI's folder of models, as a folder and its network as a single file, and LoRAs."""
    from test_shipped_workflows import write_loras

    install_toy(models)
    (weights,) = (models / "longcat" / MODEL / "dit").glob("*.safetensors")
    (models / "diffusion_models").mkdir()
    shutil.copy(weights, models / "diffusion_models" / TOY_FILE)
    write_loras(models, TOY_WIDTH)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless browser that can play what *Save Video* writes."""
    expect.set_options(timeout=PATIENCE)
    found = find_chromium()
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        except Error as error:
            raise pytest.fail.Exception(f"{INSTALL}\n{error}", pytrace=False) from None
        page = browser.new_page()
        if not page.evaluate(PLAYS_H264):
            pytest.fail(f"{found or 'The downloaded Chromium'} cannot play H.264 videos. {OTHER}", pytrace=False)
        page.close()
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def artifacts(report: list[str]) -> Path:
    """The folder of the screenshots."""
    folder = Path(os.environ.get("LONGCAT_ARTIFACTS", PACK / "output" / "screenshots")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    report.append(f"screenshots: {folder}")
    return folder


@pytest.fixture(scope="package")
def tab(browser: Browser, server: Any, artifacts: Path) -> Iterator[Editor]:
    """The editor in English, for all tests."""
    with open_editor(browser, "en-US", server.address, artifacts) as editor:
        yield editor


@pytest.fixture
def editor(tab: Editor) -> Editor:
    """The editor in English with an empty workflow and nothing in front of it."""
    tab.clear_screen()
    tab.start_blank()
    return tab
