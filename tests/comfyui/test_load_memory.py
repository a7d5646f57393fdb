"""Loading a large single file takes no more memory than ComfyUI takes for a Wan of the same size."""

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.ops
import pytest
import torch

from longcat_core.weights import layouts

PACK = Path(__file__).resolve().parents[2]
FILE_BYTES = 2e9
BF16_BYTES = 2
TOLERANCE = 1.02  # between two runs of the same
LONGCAT: dict[str, Any] = {
    **{"in_channels": 16, "out_channels": 16, "hidden_size": 1536, "num_heads": 12, "caption_channels": 4096},
    **{"ffn_hidden_size": 4096, "adaln_tembed_dim": 512, "frequency_embedding_size": 256, "patch_size": (1, 2, 2)},
}
WAN: dict[str, Any] = {"model_type": "t2v", "dim": 1536, "ffn_dim": 6144, "num_heads": 12}
LOAD = """
import sys
root, pack, folder, name = sys.argv[1:]
sys.path.insert(0, root)
sys.path.append(pack)
import comfy.cli_args
comfy.cli_args.args.cpu = True
import folder_paths, nodes
from longcat_core.comfyui import family
family.register()
folder_paths.folder_names_and_paths["diffusion_models"] = ([folder], {".safetensors"})
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
(model,) = nodes.UNETLoader().load_unet(name, "default")
print(type(model.model).__name__, peak() - before)
"""


def longcat_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """A LongCat-Video's tensors, as released."""
    return layouts.tensor_shapes({**LONGCAT, "depth": depth})


def wan_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """A Wan 2.1's tensors."""
    operations = comfy.ops.disable_weight_init
    network = comfy.ldm.wan.model.WanModel(**WAN, num_layers=depth, device="meta", operations=operations)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def write_zeros(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Write a file of zeros in bf16 that takes no room on the disk; its size in bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + BF16_BYTES * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path.stat().st_size


def depth_for(shapes: Any, size: float) -> int:
    """How many blocks make so many numbers."""
    one, two = (sum(torch.Size(shape).numel() for shape in shapes(depth).values()) for depth in (1, 2))
    return round((size - one) / (two - one)) + 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs hardware: a Linux that counts peak memory")
def test_no_more_than_wan_of_the_same_size(tmp_path: Path, comfyui: Path, report: list[str]) -> None:
    ratios = {}
    for name, shapes in (("LongCatVideoModel", longcat_shapes), ("WAN21", wan_shapes)):
        file = tmp_path / f"{name}.safetensors"
        size = write_zeros(file, shapes(depth_for(shapes, FILE_BYTES / BF16_BYTES)))
        assert abs(size / FILE_BYTES - 1) < 0.03
        command = [sys.executable, "-P", "-c", LOAD, comfyui, PACK, tmp_path, file.name]
        done = subprocess.run(list(map(str, command)), cwd=comfyui, capture_output=True, text=True, check=True)
        kind, peak = done.stdout.split()[-2:]
        assert kind == name
        ratios[name] = int(peak) / size
        file.unlink()
    report.append(
        "peak memory of loading a 2 GB bf16 file over its size: " + ", ".join(f"{n} {r:.3f}" for n, r in ratios.items())
    )
    assert ratios["LongCatVideoModel"] <= ratios["WAN21"] * TOLERANCE
