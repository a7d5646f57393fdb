"""The help pages that the graph editor shows of our nodes: their form, and that their numbers are the nodes' own."""

import re

import nodes
import pytest
from graphs import PACK, Json, inputs, our_nodes

PAGES = PACK / "web" / "docs"
SECTIONS = ["Inputs", "Outputs", "Example", "Common mistakes"]
EXTRA_SECTIONS = {"Files"}  # of the node that writes some
GRAPH = re.compile(r"```\n(.*?)```", re.DOTALL)


@pytest.fixture(params=our_nodes())
def node_id(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def page(node_id: str) -> str:
    return (PAGES / f"{node_id}.md").read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    return re.split(r"^## ", page.partition(f"\n## {name}\n")[2], flags=re.MULTILINE)[0]


def rows(table: str) -> dict[str, str]:
    """What a table says of each name; a row without a name goes on with the one above."""
    said: dict[str, str] = {}
    for name, meaning in re.findall(r"^\| (?:`(\w+)` )?\| (.*) \|$", table, re.MULTILINE):
        last = name or next(reversed(said), "")
        said[last] = f"{said.get(last, '')} {meaning}"
    return {name: meaning for name, meaning in said.items() if name}


def number(value: float) -> str:
    """As a page writes it: 4 for 4.0, and a seed in full."""
    return str(int(value) if value == int(value) else value)


def largest(options: Json) -> float:
    """The last value that a whole-number widget reaches in its steps."""
    step = options.get("step", 1)
    return options["max"] - (options["max"] - options["min"]) % step if isinstance(step, int) else options["max"]


def test_every_node_has_a_page_and_no_other() -> None:
    assert sorted(path.stem for path in PAGES.iterdir()) == sorted(our_nodes())


def test_has_the_sections(node_id: str, page: str) -> None:
    assert page.startswith(f"# {nodes.NODE_DISPLAY_NAME_MAPPINGS[node_id]}\n")
    found = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert [name for name in found if name not in EXTRA_SECTIONS] == SECTIONS
    assert all(section(page, name).strip() for name in found)


def test_names_every_input_with_its_range(node_id: str, page: str) -> None:
    said = rows(section(page, "Inputs"))
    assert list(said) == [name for name, *_ in inputs(node_id)]
    for name, _, options in inputs(node_id):
        if "min" in options:
            assert re.search(rf"\b{number(options['min'])} to {number(largest(options))}\b", said[name]), name
            assert re.search(rf"\bdefault {number(options['default'])}\b", said[name]), name
        elif options.get("default"):
            default = re.escape(str(options["default"]))
            assert re.search(rf"`{default}` \(default\)|default `{default}`", said[name]), name
        choices = [] if name == "folder" else options.get("options", [])
        assert [choice for choice in choices if f"`{choice}`" not in said[name]] == [], name


def test_names_every_output(node_id: str, page: str) -> None:
    assert list(rows(section(page, "Outputs"))) == list(nodes.NODE_CLASS_MAPPINGS[node_id].RETURN_NAMES)


def test_shows_the_node_in_a_graph(node_id: str, page: str) -> None:
    """Drawn with the names that the editor shows."""
    graph = GRAPH.search(section(page, "Example"))
    assert graph
    assert nodes.NODE_DISPLAY_NAME_MAPPINGS[node_id] in graph[1]
    assert "->" in graph[1]
    ours = {nodes.NODE_DISPLAY_NAME_MAPPINGS[each] for each in our_nodes()}
    assert {name for name in re.findall(r"LongCat(?: [A-Z][\w*-]+)+", graph[1]) if name not in ours} == set()


def test_says_what_goes_wrong(page: str) -> None:
    assert re.findall(r"^- ", section(page, "Common mistakes"), re.MULTILINE)
