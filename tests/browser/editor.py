"""One tab with ComfyUI's graph editor, driven as a user drives it."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect
from playwright.sync_api import TimeoutError as Timeout

Json = dict[str, Any]

PACK_CATEGORY = "longcat-video"
VIDEO_PREVIEW = "video-preview"
VIEWPORT = ViewportSize(width=1920, height=1080)
SEARCH_SPOT = (900, 700)  # pixels; nothing lies there in an empty workflow
NODE_SPOT = (500, 300)  # apart from the other, or clicks on both could count as a double click
START_TIMEOUT = 120_000  # milliseconds, as all of playwright's; a busy machine needs 10 s
RUN_TIMEOUT = 300_000
SEARCH_TIMEOUT = 8_000
SEARCH_ATTEMPTS = 4

READY = """() => window.app?.vueAppReady && Object.keys(LiteGraph.registered_node_types).length > 100
    && !document.querySelector('#splash-loader')"""
IS_OPEN = """([name, count]) => app.graph.nodes.length === count
    && app.extensionManager.workflow.activeWorkflow.filename.startsWith(name)"""
# A node that is a subgraph has the type of its definition's id, and is judged by what is inside.
MISSING = """() => {
    const inside = nodes => nodes.flatMap(n => n.subgraph ? inside(n.subgraph.nodes) : [n.type]);
    return inside(app.graph.nodes).filter(type => !(type in LiteGraph.registered_node_types));
}"""
SET_WIDGETS = """values => app.graph.nodes.forEach(node => node.widgets?.forEach(widget => {
    if (!(widget.name in values) || widget.value === 0) return;
    widget.value = values[widget.name];
    widget.callback?.(widget.value);
}))"""
SET_PROMPTS = """prompt => app.graph.nodes.forEach(node => {
    const targets = (node.outputs ?? []).flatMap(output => output.links ?? []).map(link => app.graph.links[link]);
    const negative = targets.some(t => app.graph.getNodeById(t.target_id).inputs[t.target_slot].name === 'negative');
    for (const widget of node.widgets ?? [])
        if (widget.name === 'negative' || (negative && widget.name === 'text')) widget.value = '';
        else if (['text', 'prompts'].includes(widget.name)) widget.value = widget.value.replace(/^.*\\S.*$/gm, prompt);
})"""
REPLACE_BY_LOADER = """slots => {
    const replaced = app.graph.nodes.filter(node => node.type in slots);
    if (!replaced.length) return;
    const loader = LiteGraph.createNode('LongCatLoader');
    app.graph.add(loader);
    loader.pos = replaced[0].pos;
    for (const node of replaced) {
        for (const id of [...node.outputs[0].links]) {
            const link = app.graph.links[id];
            loader.connect(slots[node.type], app.graph.getNodeById(link.target_id), link.target_slot);
        }
        app.graph.remove(node);
    }
}"""
RECORD_OUTCOME = """() => {
    window.outcome = null;
    for (const type of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(type, event => { window.outcome ??= {type, ...event.detail}; }, {once: true});
}"""

# The editor's own command animates; text boxes and videos follow the canvas a frame later.
FIT_VIEW = """async () => {
    const boxes = [...app.graph.nodes, ...app.graph.groups].map(item => item.boundingRect);
    const [left, top] = [0, 1].map(axis => Math.min(...boxes.map(box => box[axis])));
    const [right, bottom] = [0, 1].map(axis => Math.max(...boxes.map(box => box[axis] + box[axis + 2])));
    app.canvas.ds.fitToBounds([left, top, right - left, bottom - top]);
    app.canvas.setDirty(true, true);
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
}"""


@dataclass(frozen=True)
class Editor:
    """The editor in a tab. What waits raises playwright's TimeoutError or AssertionError."""

    page: Page
    artifacts: Path
    """The folder of the screenshots."""

    def start_blank(self) -> None:
        """Open an empty workflow."""
        self.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.page.wait_for_function("app.graph.nodes.length === 0")

    def clear_screen(self) -> None:
        """Close what is open above the canvas and beside it."""
        self.page.evaluate("app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")
        dialogs = self.page.get_by_role("dialog")
        for _ in range(dialogs.count()):
            self.page.keyboard.press("Escape")
        expect(dialogs).to_have_count(0)

    @contextlib.contextmanager
    def template_card(self, name: str) -> Iterator[Locator]:
        """The card of one of our workflows in the template browser, which is closed afterwards."""
        self.page.get_by_role("button", name="Templates").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(PACK_CATEGORY, exact=True).first.click()
        card = dialog.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()
        yield card
        expect(dialog).to_be_hidden()

    def open_file(self, path: Path, nodes: int) -> None:
        """Open a workflow file of that many nodes, as through the editor's menu."""
        self.page.set_input_files("#comfy-file-input", path)
        self.wait_until_open(path.stem, nodes)

    def wait_until_open(self, name: str, nodes: int) -> None:
        """Wait until a workflow of that name is on the canvas, with that many nodes."""
        self.page.wait_for_function(IS_OPEN, arg=[name, nodes])

    def missing_types(self) -> list[str]:
        """Types of the nodes on the canvas, and in subgraphs there, that the editor does not know."""
        return self.page.evaluate(MISSING)

    def widget_values(self) -> dict[int, list[Any]]:
        """The values that each node would be saved with, by its id."""
        nodes = self.page.evaluate("app.graph.serialize().nodes")
        return {node["id"]: node["widgets_values"] for node in nodes if "widgets_values" in node}

    def prompt(self) -> Json:
        """What the editor would queue, in API format, without the input it adds where *Load Video* shows its file."""
        prompt = self.page.evaluate("app.graphToPrompt().then(result => result.output)")
        for node in prompt.values():
            node["inputs"].pop(VIDEO_PREVIEW, None)
        return prompt

    def make_small(self, prompt: str, values: Mapping[str, Any], slots: Mapping[str, int]) -> None:
        """Write one prompt in the place of each, empty the negative ones, and set widgets by name where they are not 0.

        Loaders of the types in ``slots`` are replaced by one *LongCat Loader*, whose output of that number takes over.
        """
        self.page.evaluate(REPLACE_BY_LOADER, slots)
        self.page.evaluate(SET_WIDGETS, values)
        self.page.evaluate(SET_PROMPTS, prompt)

    def run(self) -> Json:
        """Press *Run* and return the server's last message about the prompt: ``type`` and its details."""
        self.page.evaluate(RECORD_OUTCOME)
        with self.page.expect_response(lambda r: r.request.method == "POST" and r.url.endswith("/prompt")) as answer:
            self.page.get_by_test_id("queue-button").click()
        assert answer.value.ok, answer.value.text()
        self.page.wait_for_function("window.outcome", timeout=RUN_TIMEOUT)
        return self.page.evaluate("window.outcome")

    def search(self, words: str) -> Locator:
        """Double-click the canvas, type, and return the list of what is found, which may still fill."""
        box = self.page.get_by_role("dialog").get_by_role("combobox").first
        for _ in range(SEARCH_ATTEMPTS):  # a busy editor loses clicks
            self.page.mouse.dblclick(*SEARCH_SPOT)
            with contextlib.suppress(Timeout):
                box.wait_for(timeout=SEARCH_TIMEOUT)
                break
        expect(box).to_be_focused()
        self.page.keyboard.type(words)
        return self.page.get_by_test_id("result-item")

    def found(self, results: Locator, name: str) -> Locator:
        """The one result of a search that has exactly this name."""
        return results.filter(has=self.page.get_by_text(name, exact=True))

    def place(self, result: Locator) -> None:
        """Take a node from the search and drop it onto the canvas."""
        result.click()
        expect(self.page.get_by_role("dialog")).to_be_hidden()
        self.page.mouse.move(*NODE_SPOT)
        self.page.mouse.click(*NODE_SPOT)
        self.page.wait_for_function("app.graph.nodes.length === 1 && !app.graph.nodes[0].flags.ghost")

    def show_help(self, node_id: str) -> Locator:
        """Put a node onto the empty canvas, select it, press its info button and return the page that opens."""
        self.page.evaluate(
            """type => {
                const node = LiteGraph.createNode(type);
                app.graph.add(node);
                node.pos = [...app.canvas.ds.visible_area.slice(0, 2)].map(edge => edge + 200);
                app.canvas.selectNode(node);
            }""",
            node_id,
        )
        self.page.get_by_test_id("info-button").click()
        return self.page.locator(".node-help-content")

    def take_picture(self, name: str, fit: bool = False) -> None:
        """Save a screenshot as ``name``.png; ``fit`` brings the whole workflow into view first."""
        if fit:
            self.page.evaluate(FIT_VIEW)
        self.page.screenshot(path=self.artifacts / f"{name}.png")


@contextlib.contextmanager
def open_editor(browser: Browser, locale: str, address: str, artifacts: Path) -> Iterator[Editor]:
    """Open the editor of the server at ``address`` in a new window of a user with that locale, and wait for it."""
    with browser.new_context(viewport=VIEWPORT, locale=locale) as context:
        context.set_default_timeout(START_TIMEOUT)
        page = context.new_page()
        page.goto(f"http://{address}/")
        page.wait_for_function(READY, timeout=START_TIMEOUT)
        yield Editor(page, artifacts)


def words(text: str) -> list[str]:
    """The words of a text, or of a Markdown page as its reader sees them: without the targets of links and pictures."""
    shown = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    return re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "]", shown))
