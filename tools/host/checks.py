"""The checks of the pack: ruff, mypy, then all of pytest, counted together. Needs the standard library only."""

from __future__ import annotations

import os
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING

from host.process import PACK, Host, run_in_host
from host.setup import TEST_REQUIREMENTS, ensure_host, requirements

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HARDWARE = "needs hardware:"
TEST_PATHS = ("tests", "./tests", str(PACK / "tests"))
BROWSER_TESTS = PACK / "tests" / "browser"
TYPED = ("__init__.py", "nodes", "longcat_core", "scripts", "tools")
WORKERS = 2
SHARED_OUT = ("-n", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder")
# The pack's folder must not be on sys.path: its nodes/ would hide ComfyUI's nodes.py.
PYTEST = "import sys; sys.path = [path for path in sys.path if path]; import pytest; sys.exit(pytest.main())"


def check(arguments: Sequence[str]) -> int:
    """Run everything, also after a failure, count, and return the exit status.

    Args:
        arguments: for pytest.
    """
    host = ensure_host(packages=requirements(TEST_REQUIREMENTS))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        failed = [*_failed_checks(host, scratch)]
        report = scratch / "report.xml"
        arguments = [argument for argument in arguments if argument != "--"]
        paths = [argument for argument in arguments if argument.startswith(TEST_PATHS)]
        _prepare_browser(host, paths)
        if not paths:
            # Two processes of one thread do more than one of two.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))
            arguments = [*SHARED_OUT, *arguments, "tests"]
        status = _run_pytest(host, arguments, report)
        passed, failures, accepted, refused = _counts(report) if report.is_file() else (0, 0, 0, [])
    if status and not failures:
        failed.append(f"pytest (status {status})")
    for reason in refused:
        print(f'skipped without "{HARDWARE}": {reason}')
    for name in failed:
        print(f"failed: {name}")
    failures += len(refused) + len(failed)
    print(f"{passed} passed, {failures} failed" + (f", {accepted} need other hardware" if accepted else ""))
    return 1 if failures else 0


def _failed_checks(host: Host, scratch: Path) -> Iterator[str]:
    print("== ruff", flush=True)
    if run_in_host(host, ["-m", "ruff", "check"], cwd=PACK):
        yield "ruff"
    print("== mypy", flush=True)
    # Type checking needs the pack as a package, and a clone's folder may have any name, such as longcat-video.
    package = scratch / "longcat_video"
    for name in TYPED:
        source = PACK / name
        if source.is_dir():
            shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            package.mkdir()
            shutil.copy(source, package)
    (package / "scripts" / "__init__.py").touch()  # two commands are named as the packages that they start
    if run_in_host(host, ["-m", "mypy", "--config-file", PACK / "pyproject.toml", package], cwd=scratch):
        yield "mypy"


def _prepare_browser(host: Host, paths: list[str]) -> None:
    """Download a browser where the tests need one and none is found; without it they fail and say what to install."""
    needed = not paths or any(map(_concerns_browser, paths))
    if needed and not os.environ.get("COMFYUI_PATH"):  # into a user's own host nothing is installed
        run_in_host(host, [BROWSER_TESTS / "chromium.py"])


def _concerns_browser(path: str) -> bool:
    """Whether a path given to pytest holds the browser tests or lies among them."""
    chosen = (PACK / path.partition("::")[0]).resolve()
    return chosen.is_relative_to(BROWSER_TESTS) or BROWSER_TESTS.is_relative_to(chosen)


def _run_pytest(host: Host, arguments: Sequence[str], report: Path) -> int:
    print("== pytest", flush=True)
    options = ["-c", PACK / "tests" / "pytest.ini", f"--junitxml={report}"]
    return run_in_host(host, ["-c", PYTEST, *options, *arguments], cwd=PACK)


def _counts(report: Path) -> tuple[int, int, int, list[str]]:
    """Read a JUnit report: passed, failed, skipped for want of hardware, and the other skips with their reasons."""
    passed = failures = accepted = 0
    refused = []
    for case in ElementTree.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failures += 1
        elif skip is None or skip.get("type") == "pytest.xfail":
            passed += 1
        elif _reason(skip).startswith(HARDWARE):
            accepted += 1
        else:
            refused.append(f"{case.get('classname')} {case.get('name')}: {_reason(skip)}")
    return passed, failures, accepted, refused


def _reason(skip: ElementTree.Element) -> str:
    message = skip.get("message", "")
    # A whole module that skips itself has its reason in the text, as (file, line, 'Skipped: reason').
    return (skip.text or "").partition("Skipped: ")[2].rstrip("\"')") if message == "collection skipped" else message
