"""What ComfyUI and its registry read about the pack."""

import ast
import re
import sys
from pathlib import Path

from comfy_config.config_parser import extract_node_configuration

PACK = Path(__file__).resolve().parents[2]
COMES_WITH_COMFYUI = {
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfy_kitchen"),
    *("execution", "folder_paths", "nodes", "server", "torch"),
}


def imported() -> set[str]:
    """Top-level modules that the pack imports, other than itself and Python's own."""
    names: set[str] = set()
    for file in [*PACK.glob("nodes/*.py"), *PACK.glob("longcat_core/**/*.py")]:
        for statement in ast.walk(ast.parse(file.read_text())):
            if isinstance(statement, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                names.add(statement.module.partition(".")[0])
    return names - set(sys.stdlib_module_names)


def test_requirements_are_what_is_imported_and_no_torch() -> None:
    requirements = (PACK / "requirements.txt").read_text().split()
    assert {line.partition(">=")[0] for line in requirements} == imported() - COMES_WITH_COMFYUI
    assert all(">=" in line for line in requirements)


def test_metadata_as_comfyui_reads_it() -> None:
    config = extract_node_configuration(str(PACK))
    assert config.project.name == "longcat-video"
    assert config.project.dependencies == (PACK / "requirements.txt").read_text().split()
    assert (PACK / config.project.license.file).is_file()
    assert config.tool_comfy.display_name == "LongCat-Video"
    assert config.tool_comfy.publisher_id


def test_node_layer_is_used_by_nothing_below_it() -> None:
    for file in PACK.glob("longcat_core/**/*.py"):
        text = file.read_text()
        assert "folder_paths" not in text, file
        assert "import nodes" not in text, file


def test_links_and_pictures_of_the_documentation_exist() -> None:
    pages = [*PACK.glob("*.md"), *PACK.glob("docs/*.md"), *PACK.glob("web/docs/*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    ]
    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
