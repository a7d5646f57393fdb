"""Damaged checkpoints, posted to a real server: each ends in one sentence, and nothing else does."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from damages import Damage, corpus, weights_file

TINY = "tiny-random"
CORPUS = list(corpus())
WARM_UP = 40  # prompts until the server's memory has found its size
GROWTH_MIB = 64  # that all damaged files together may leave behind; each is read into memory for 0.7 MiB
LONGEST_SENTENCE = 900  # characters
# What ComfyUI itself says of single files that it cannot read; the pack sees only what it could.
CORE_SAYS = (
    "Error while deserializing header",
    "Could not detect model type",
    "offset",
    "dtype",
    "header",
    "HeaderTooLarge",
)


def prompt(loader: str, **inputs: Any) -> dict[str, dict]:
    """Load a network and look at its schedule, which needs nothing else of it."""
    return {
        "1": {"class_type": loader, "inputs": inputs},
        "2": {"class_type": "LongCatSigmas", "inputs": {"model": ["1", 0], "steps": 4, "mode": "base"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }


def load_folder(server: Any, name: str) -> tuple[str, dict]:
    """Load a folder with *LongCat Loader*; the last message of the prompt."""
    return server.run(prompt("LongCatLoader", folder=name))["status"]["messages"][-1]


def load_file(server: Any, name: str) -> tuple[str, dict]:
    """Load a file with *Load Diffusion Model*; the last message of the prompt."""
    return server.run(prompt("UNETLoader", unet_name=name, weight_dtype="default"))["status"]["messages"][-1]


@pytest.fixture(scope="module")
def said(report: list[str]) -> Iterator[Counter[str]]:
    """Who refused single files: this pack or ComfyUI."""
    found: Counter[str] = Counter()
    yield found
    report.append(f"damaged checkpoints: {len(CORPUS)}; as single files refused by {dict(found)}")


@pytest.fixture
def folder(server: Any) -> Iterator[Path]:
    """A model folder with nothing but a healthy network, to damage."""
    models = server.base_directory / "models" / "longcat"
    damaged = models / "damaged"
    shutil.copytree(models / TINY / "dit", damaged / "dit")
    yield damaged
    shutil.rmtree(damaged)


@pytest.fixture(scope="module")
def memory(server: Any) -> list[int]:
    """The server's memory, in bytes, after each prompt with a damaged file."""
    return []


def test_the_corpus_is_large_and_varied() -> None:
    assert len(CORPUS) >= 200
    assert len({damage.kind for damage in CORPUS}) >= 60


@pytest.mark.parametrize("damage", CORPUS, ids=lambda damage: damage.name)
def test_each_is_one_sentence(damage: Damage, folder: Path, server: Any, said: Counter[str], memory: list[int]) -> None:
    damage.apply(folder / "dit")
    renamed = folder.rename(folder.with_name(damage.name))
    kind, error = load_folder(server, damage.name)
    single = server.base_directory / "models" / "diffusion_models" / f"{damage.name}.safetensors"
    if damage.is_file:
        shutil.move(weights_file(renamed / "dit"), single)
    renamed.rename(folder)
    assert kind == "execution_error"
    sentence = error["exception_message"].strip()
    assert error["exception_type"] == "ValueError"
    assert damage.name in sentence
    assert_is_one_sentence(sentence)

    if damage.is_file:
        kind, error = load_file(server, single.name)
        single.unlink()
        assert kind == "execution_error"
        sentence = error["exception_message"].strip()
        by_core = any(word in sentence for word in CORE_SAYS) and "LongCat-Video" not in sentence
        said["ComfyUI" if by_core else "this pack"] += 1
        assert by_core or "LongCat-Video" in sentence, sentence
        assert "Traceback" not in sentence
        assert len(sentence) < LONGEST_SENTENCE
    memory.append(psutil.Process(server.process.pid).memory_info().rss)


def assert_is_one_sentence(text: str) -> None:
    """One line that ends, of a length that can be read."""
    assert "\n" not in text
    assert "Traceback" not in text
    assert text.endswith(".")
    assert len(text) < LONGEST_SENTENCE


def test_none_leaves_memory_behind(memory: list[int], report: list[str]) -> None:
    early, late = max(memory[:WARM_UP]), memory[-1]
    report.append(
        f"damaged checkpoints: the server's memory grew by {(late - early) / 2**20:.0f} MiB over {len(memory)} of them"
    )
    assert len(memory) == len(CORPUS)
    assert late - early < GROWTH_MIB * 2**20


def test_the_next_prompt_runs(server: Any) -> None:
    assert load_folder(server, TINY)[0] == "execution_success"
    assert load_file(server, "tiny-random.safetensors")[0] == "execution_success"
