"""Who may know whom: `nodes -> longcat_core -> comfy`, and inside the core from the pure to the particular."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
CORE = PACK / "longcat_core"
TOP = ("schedule", "guidance", "text")
KNOWS = {
    "schedule": set(),
    "guidance": set(),
    "text": set(),
    "frames": set(),
    "sparse": {"frames"},
    "network": {"frames", "sparse"},
    "weights": set(),
    "lora": {"weights"},
    "conversion": {"weights", "lora"},
    "segments": {"frames", "schedule"},
    "comfyui": {"frames", "sparse", "network", "weights", "lora", "schedule", "guidance", "text"},
    "model": {"network"},
    "sparse_attention": {"sparse"},
}
"""What each folder or file at the top of the core knows besides itself."""
MATHS = {"torch", "einops"}
LIBRARIES = {
    **dict.fromkeys(("schedule", "guidance", "sparse", "lora", "conversion", "model", "sparse_attention"), MATHS),
    "text": MATHS | {"ftfy"},
    "frames": MATHS,
    "weights": MATHS,
    "network": MATHS | {"comfy"},
    "segments": MATHS | {"safetensors"},
    "comfyui": MATHS | {"comfy", "transformers", "sentencepiece"},
}
ALSO = {
    "frames/comfyui.py": {"comfy"},  # the latent format and resizing, which are ComfyUI's
    "segments/files.py": {"comfy"},  # the writer of .latent files is ComfyUI's
    "segments/fingerprint.py": {"comfy_execution"},  # what is a link in a prompt is ComfyUI's to say
    "weights/quantization.py": {"comfy_kitchen"},  # rounding to nvfp4 is comfy-kitchen's
}
OF_NODES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "nodes",
    "server",
    "torch",
}
FILES = sorted(CORE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports, as parts of an absolute name; the pack's own begin with `longcat_core` or `nodes`."""
    package = path.relative_to(PACK).parts[:-1]
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else ()
            module = (*base, *(statement.module or "").split(".")) if statement.module else base
            yield from ((*module, alias.name) if statement.level else module for alias in statement.names)


def room(path: Path) -> str:
    """The folder or file at the top of the core that a file is in."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CORE).as_posix())
def test_core_knows_only_what_is_below_it(path: Path) -> None:
    if path.name == "__init__.py":
        assert list(imports(path)) == []
        return
    here = room(path)
    own = {name[1] for name in imports(path) if name[0] == "longcat_core" and len(name) > 1}
    assert own <= {here} | KNOWS[here]
    foreign = {name[0] for name in imports(path)} - {"longcat_core"} - set(sys.stdlib_module_names)
    assert foreign <= LIBRARIES[here] | ALSO.get(path.relative_to(CORE).as_posix(), set())


def test_every_room_and_exception_exists() -> None:
    assert {room(path) for path in FILES} - {"__init__"} == KNOWS.keys() == LIBRARIES.keys()
    assert all((CORE / name).is_file() for name in ALSO)


@pytest.mark.parametrize("path", sorted((PACK / "nodes").glob("*.py")), ids=lambda path: path.name)
def test_nodes_know_the_core_and_comfyui(path: Path) -> None:
    foreign = {name[0] for name in imports(path)} - {"longcat_core", "nodes"} - set(sys.stdlib_module_names)
    assert foreign <= OF_NODES


def test_nothing_that_is_shipped_knows_the_tools() -> None:
    tools = {path.name for path in (PACK / "tools").iterdir() if path.is_dir()}
    for path in [*FILES, *(PACK / "nodes").glob("*.py")]:
        assert not {name[0] for name in imports(path)} & tools, path
