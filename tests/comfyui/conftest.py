"""A tiny model folder, in-process nodes, and a real server with the pack in it."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import nodes
import pytest
import torch
from host.process import Host
from host.server import running_server
from inprocess import node
from toy.workflows import install_toy

PACK = Path(__file__).resolve().parents[2]
FAULT_PACK = Path(__file__).parent / "fault_pack"
COMFYUI = Path(os.environ["COMFYUI_PATH"])
TINY = "tiny-random"
TINY_FILE = "tiny-random.safetensors"


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """ComfyUI's folder; it is set up in this process (see ../conftest.py)."""
    return COMFYUI


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A complete official-layout folder with tiny random weights, in ComfyUI's models/longcat."""
    folder = Path(folder_paths.models_dir) / "longcat" / TINY
    subprocess.run([sys.executable, str(PACK / "scripts" / "make_tiny_model.py"), str(folder)], check=True)
    single_file = Path(folder_paths.models_dir) / "diffusion_models" / TINY_FILE
    single_file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(next((folder / "dit").glob("*.safetensors")), single_file)
    return folder


@pytest.fixture(scope="session")
def toy_model() -> Path:
    """The trained toy, in ComfyUI's models/longcat."""
    return install_toy(Path(folder_paths.models_dir))


@pytest.fixture(scope="module")
def core_nodes() -> None:
    """All of core's nodes, as a server has them."""
    asyncio.run(nodes.init_builtin_extra_nodes())


@pytest.fixture(scope="session")
def loaded(tiny_model: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the tiny folder, from LongCatLoader."""
    return node("LongCatLoader")(TINY)


@pytest.fixture(scope="session")
def prompts(loaded: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    """Positive and negative conditioning."""
    encode = node("LongCatTextEncode")
    (positive,), (negative,) = encode(loaded[1], "a red ball rolls to the right"), encode(loaded[1], "blurry, static")
    return positive, negative


@pytest.fixture
def empty_latent() -> dict[str, torch.Tensor]:
    """A 64 x 64 pixel, 17 frame latent."""
    return node("LongCatLatent")(64, 64, 17)[0]


@pytest.fixture(scope="session")
def server(tiny_model: Path, toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a real server that has the pack, in a folder with a hyphen, and both models."""
    base = tmp_path_factory.mktemp("server")
    shutil.copytree(Path(folder_paths.models_dir), base / "models")
    shutil.copytree(FAULT_PACK, base / "custom_nodes" / FAULT_PACK.name)
    host = Host(comfyui=COMFYUI, python=Path(sys.executable))
    with running_server(
        host,
        base,
        PACK,
        ("--whitelist-custom-nodes", "longcat-video", FAULT_PACK.name, "--preview-method", "latent2rgb"),
        cpu=True,
    ) as c:
        yield c


@pytest.fixture(scope="module")
def start(comfyui: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that starts a server of its own; all use one base directory."""
    base = tmp_path_factory.mktemp("restarted")
    shutil.copytree(Path(folder_paths.models_dir), base / "models")
    host = Host(comfyui=comfyui, python=Path(sys.executable))
    return lambda: running_server(host, base, PACK, cpu=True)
