"""One real ComfyUI in this process, with the pack loaded the way ComfyUI loads it.

`COMFYUI_PATH` must name a ComfyUI folder (`scripts/test.py` sets it). Tests import the pack's modules by their plain
names (`longcat_core.model`): these are the very modules that ComfyUI loaded, not a second copy.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).resolve().parent.parent
PARTS = {
    "toy tests": ("test_toy.py", "test_sensitivity.py", "test_train_toy.py", "test_demo.py"),
    "browser tests": ("browser/",),
}
LONGEST = "test_toy.py"
REPORT = pytest.StashKey[list[str]]()
BASE = tempfile.TemporaryDirectory(prefix="longcat-tests-")


def set_up_comfyui() -> None:
    """Choose ComfyUI's options, which count only until its modules are imported, and load the pack."""
    root = os.environ.get("COMFYUI_PATH")
    if not root:
        raise pytest.UsageError("COMFYUI_PATH is not set: run the tests with python3 scripts/test.py")
    sys.path.insert(0, root)
    (Path(BASE.name) / "custom_nodes").mkdir()

    import comfy.cli_args

    args = comfy.cli_args.args
    args.cpu = True
    args.use_pytorch_cross_attention = True
    args.base_directory = BASE.name
    args.database_url = "sqlite:///:memory:"
    args.disable_api_nodes = True

    import nodes

    assert asyncio.run(nodes.load_custom_node(str(PACK))), "ComfyUI could not load the pack; see the log above"
    package = str(PACK).replace(".", "_x_")
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{package}.longcat_core"):
            sys.modules[name.removeprefix(f"{package}.")] = module


# The conftest files below this one import ComfyUI, and pytest imports them before it calls any hook.
set_up_comfyui()


def pytest_configure(config: pytest.Config) -> None:
    """Make room for measured numbers."""
    config.stash[REPORT] = []


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines to print after the tests: measured numbers."""
    return request.config.stash[REPORT]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest, so that no worker is left alone with it."""
    items.sort(key=lambda item: item.path.name != LONGEST)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what a worker measured to the process that prints it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["measured"] = session.config.stash[REPORT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker measured, if it lived to say so."""
    node.config.stash[REPORT] += getattr(node, "workeroutput", {}).get("measured", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the tests measured, and how long the parts took."""
    runs = [run for runs in terminalreporter.stats.values() for run in runs if isinstance(run, pytest.TestReport)]
    for name, files in PARTS.items():
        seconds = sum(run.duration for run in runs if any(file in run.nodeid for file in files))
        if seconds:
            config.stash[REPORT].append(f"{name}: {seconds:.0f} s")
    if config.stash[REPORT]:
        terminalreporter.section("measured")
    for line in config.stash[REPORT]:
        terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary base directory."""
    BASE.cleanup()
