"""The command that brings weights into single files: what it writes, what it refuses, and what happens when it is
stopped."""

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import checkpoints
import comfy.sd
import lora_files
import pytest
import torch
from goldens import load
from graphs import PACK
from safetensors.torch import load_file, save_file
from torch import Tensor

from longcat_core.comfyui import load as load_folder
from longcat_core.lora.changes import read_change
from longcat_core.lora.file import LoraFile
from longcat_core.weights import judge, layouts, safetensors_file, safetensors_writer
from longcat_core.weights import vae_umt5 as weights
from longcat_core.weights.quantization import FP8, INT8, NVFP4
from longcat_core.weights.stored import InMemory

SCRIPT = PACK / "scripts" / "prepare_weights.py"
DIT = "dit/diffusion_pytorch_model.safetensors"
FORMATS = {"bf16": None, "fp8": FP8, "int8": INT8, "nvfp4": NVFP4}
COMFY_FILES = (
    "diffusion_models/longcat_video_{}",
    "text_encoders/longcat_video_umt5_xxl_bf16",
    "vae/longcat_video_vae",
)
OFFICIAL_FILES = (
    *("dit/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "vae/config.json"),
    *("dit/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"),
    *("vae/diffusion_pytorch_model.safetensors", "tokenizer/spiece.model"),
)
# A checkpoint of 500 MB in fp32.
LARGE: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 1024,
    "depth": 6,
    "num_heads": 8,
    "caption_channels": 512,
    "ffn_hidden_size": 2816,
    "adaln_tembed_dim": 512,
    "frequency_embedding_size": 256,
    "patch_size": (1, 2, 2),
}
MAX_GROWTH_MB = 240
StateDict = dict[str, Tensor]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "COMFYUI_PYTHON": sys.executable}


def run(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess:
    """Run the command itself."""
    done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def prepare(source: Path, dest: Path, dtype: str = "bf16", layout: str = "comfy", **switches: bool) -> int:
    """Run it in this process."""
    from prepare.run import prepare as prepare_weights

    options = {"validate": False, "force": False, **switches}
    return prepare_weights(argparse.Namespace(source=source, dest=dest, dtype=dtype, layout=layout, **options))


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> bool:
    """Whether names, dtypes, shapes and all bits are equal."""
    return x.keys() == y.keys() and all(
        (x[name].dtype, x[name].shape) == (y[name].dtype, y[name].shape)
        and torch.equal(x[name].reshape(-1).view(torch.uint8), y[name].reshape(-1).view(torch.uint8))
        for name in x
    )


def quantised(official: Mapping[str, Tensor], quant_format: str | None) -> StateDict:
    """What the converter has to write of fused weights, made by other means."""
    if quant_format is None:
        return {name: tensor.to(torch.bfloat16) for name, tensor in official.items()}
    return checkpoints.comfy_quantised(official, quant_format)


@pytest.fixture(scope="module")
def official() -> StateDict:
    """A tiny network's weights in the released layout, fp32; what bf16 cannot hold is in them."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor.float() + 1e-3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load("models/hd64.safetensors").items()
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a large DiT in three fp32 shards."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "dit").mkdir()
    shapes = layouts.tensor_shapes(LARGE)
    noise = torch.randn(max(map(math.prod, shapes.values())), generator=torch.Generator().manual_seed(0))
    index: dict[str, str] = {}
    for shard in range(3):
        file = f"diffusion_pytorch_model-{shard + 1:05}-of-00003.safetensors"
        part = {name: noise[: math.prod(shapes[name])].view(shapes[name]).clone() for name in sorted(shapes)[shard::3]}
        save_file(part, folder / "dit" / file)
        index |= dict.fromkeys(part, file)
    (folder / "dit" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.fixture(scope="module")
def converted(large: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """Where an uninterrupted run has written the large DiT, and what it printed."""
    dest = tmp_path_factory.mktemp("converted")
    return dest, run(large, dest, "--dtype", "fp8", "--validate")


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("layout", ["comfy", "official"])
def test_official_folder_to_every_format(tiny_model: Path, tmp_path: Path, layout: str, dtype: str) -> None:
    dest = tmp_path / "dest"
    assert prepare(tiny_model, dest, dtype, layout, validate=True) == 0
    if layout == "comfy":
        dit, text, vae = (dest / f"{name.format(dtype)}.safetensors" for name in COMFY_FILES)
        assert files_of(dest) == sorted(str(path.relative_to(dest)) for path in (dit, text, vae))
    else:
        dit, text, vae = (dest / OFFICIAL_FILES[i] for i in (4, 5, 6))
        assert {*OFFICIAL_FILES} <= {*files_of(dest)}
        assert not [name for name in files_of(dest) if ".part" in name]

    assert same(load_file(dit), quantised(load_file(tiny_model / DIT), FORMATS[dtype]))
    source = load_file(tiny_model / "text_encoder" / "model.safetensors")
    encoder = load_file(text)
    spiece = encoder.pop("spiece_model", None)
    assert same(encoder, quantised(weights.umt5_from_transformers(source), None))
    source = load_file(tiny_model / "vae" / "diffusion_pytorch_model.safetensors")
    assert same(load_file(vae), weights.vae_from_diffusers(source) if layout == "comfy" else source)
    if layout == "comfy":
        assert bytes(spiece.tolist()) == (tiny_model / "tokenizer" / "spiece.model").read_bytes()
        assert type(comfy.sd.load_diffusion_model(str(dit)).model).__name__ == "LongCatVideoModel"
        comfy.sd.VAE(sd=load_file(vae)).throw_exception_if_invalid()
    else:
        assert type(load_folder.load_dit(dest).model).__name__ == "LongCatVideoModel"
        assert load_folder.load_text_encoder(dest).tokenize("a cat")
        assert load_folder.load_vae(dest)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_weights_of_every_layout_give_the_same_file(
    official: StateDict, tmp_path: Path, layout: str, dtype: str
) -> None:
    source = tmp_path / "some_model.safetensors"
    prefix = "model.diffusion_model." if layout == layouts.WAN else ""
    save_file(
        {f"{prefix}{name}": tensor.contiguous() for name, tensor in checkpoints.named(official, layout).items()}, source
    )
    assert prepare(source, tmp_path / "dest", dtype, validate=True) == 0
    file = tmp_path / "dest" / "diffusion_models" / f"some_model_{dtype}.safetensors"
    assert same(load_file(file), quantised(official, FORMATS[dtype]))


QUANTISED: dict[str, tuple[Callable[[Mapping[str, Tensor]], StateDict], str, bool]] = {
    "scaled fp8": (checkpoints.scaled_fp8, "fp8", True),
    "scaled fp8 without marker": (lambda official: checkpoints.scaled_fp8(official, marker=False), "fp8", True),
    "official int8": (checkpoints.official_int8, "int8", False),
    "fp8 of this pack": (lambda official: checkpoints.comfy_quantised(official, FP8), "fp8", False),
    "int8 of this pack": (lambda official: checkpoints.comfy_quantised(official, INT8), "int8", False),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_keep_their_format(official: StateDict, tmp_path: Path, kind: str) -> None:
    make, dtype, _ = QUANTISED[kind]
    source = tmp_path / "m.safetensors"
    save_file(make(official), source)
    assert prepare(source, tmp_path, dtype, validate=True) == 0
    written = load_file(tmp_path / "diffusion_models" / f"m_{dtype}.safetensors")
    expected = judge.read_weights(make(official))
    assert same(
        written,
        {name: tensor.to(torch.bfloat16) if is_plain(name, expected) else tensor for name, tensor in expected.items()},
    )


def is_plain(name: str, tensors: Mapping[str, Tensor]) -> bool:
    layer, _, parameter = name.rpartition(".")
    return parameter == "bias" or (parameter == "weight" and f"{layer}.comfy_quant" not in tensors)


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("dtype", FORMATS)
def test_quantised_weights_are_multiplied_out_for_another_format(
    official: StateDict, tmp_path: Path, kind: str, dtype: str
) -> None:
    make, own, is_split = QUANTISED[kind]
    if dtype == own:
        dtype = "bf16"
    source = tmp_path / "m.safetensors"
    save_file(make(official), source)
    assert prepare(source, tmp_path, dtype, validate=True) == 0
    plain = checkpoints.split(official) if is_split else official
    values = multiplied_out(make(official))
    joined = {name: values[name] for name in official if name in values}
    for name in official.keys() - values.keys():
        layer, _, parameter = name.rpartition(".")
        fused = next(fused for fused in layouts.PARTS if layer.endswith(fused))
        joined[name] = torch.cat(
            [values[f"{layer.removesuffix(fused)}{part}.{parameter}"] for part in layouts.PARTS[fused]]
        )
    assert plain.keys() == values.keys()
    assert same(load_file(tmp_path / "diffusion_models" / f"m_{dtype}.safetensors"), quantised(joined, FORMATS[dtype]))


def multiplied_out(tensors: Mapping[str, Tensor]) -> StateDict:
    """Numbers times scales, fp32, as the network names them."""
    layout = layouts.which_layout(tensors)
    assert layout is not None
    named = {layouts.to_network(name, layout): tensor for name, tensor in tensors.items()}
    values: StateDict = {}
    for name, tensor in named.items():
        layer, _, parameter = name.rpartition(".")
        if parameter in ("weight", "weight_int8", "bias"):
            scale = named.get(f"{layer}.weight_scale", named.get(f"{layer}.scale_weight"))
            if scale is None or parameter == "bias":
                values[name] = tensor.float()
            else:
                column = scale.reshape(-1, 1) if scale.numel() > 1 else scale
                values[f"{layer}.weight"] = tensor.float() * column
    return values


def test_a_single_file_becomes_a_folder(official: StateDict, tmp_path: Path) -> None:
    """It has no config, so one is written that says what the tensors do."""
    source = tmp_path / "m.safetensors"
    save_file(checkpoints.named(official, layouts.WAN), source)
    prepare(source, tmp_path / "dest", "int8", "official")
    model = load_folder.load_dit(tmp_path / "dest").model.diffusion_model
    assert model.hidden_size == official["x_embedder.proj.bias"].shape[0]


def test_shards_and_one_file_give_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_model / DIT)
    folder = tmp_path / "transformer"
    folder.mkdir()
    for part in range(2):
        save_file({name: tensors[name] for name in sorted(tensors)[part::2]}, folder / f"{part}.safetensors")
    index = {name: f"{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    written = []
    for number, source in enumerate((folder, tmp_path, tiny_model / "dit")):
        prepare(source, tmp_path / f"dest{number}", "fp8")
        written.append((tmp_path / f"dest{number}" / "diffusion_models" / "longcat_video_fp8.safetensors").read_bytes())
    assert written[0] == written[1] == written[2]


def test_an_embedding_of_two_names_is_written_once(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    file = model / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"].clone()}, file)
    prepare(model / "text_encoder", tmp_path / "dest")
    written = load_file(tmp_path / "dest" / "text_encoders" / "longcat_video_umt5_xxl_bf16.safetensors")
    assert written.keys() == tensors.keys() | {"spiece_model"}
    save_file({**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"] + 1}, file)
    with pytest.raises(ValueError, match="one embedding"):
        prepare(model / "text_encoder", tmp_path / "dest2")


# --- LoRAs ------------------------------------------------------------------------------------------------------------


def changes(lora: Mapping[str, Tensor]) -> StateDict:
    """The changes of the split network that a LoRA for Wan-like names makes."""
    found: StateDict = {}
    for name, tensor in lora.items():
        if name.endswith(".diff"):
            found[name.removesuffix(".diff")] = tensor.float()
        elif name.endswith(".lora_up.weight"):
            layer = name.removesuffix(".lora_up.weight")
            down = lora[f"{layer}.lora_down.weight"].float()
            found[layer] = float(lora[f"{layer}.alpha"]) / down.shape[0] * tensor.float() @ down
    return found


@pytest.mark.parametrize("file", ["lora_cfgstep", "lora_refine"])
@pytest.mark.parametrize("convention", lora_files.CONVENTIONS)
def test_loras_of_every_convention(tmp_path: Path, file: str, convention: str) -> None:
    official = load(f"{file}.safetensors")
    source = tmp_path / "my lora.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in lora_files.CONVENTIONS[convention](official).items()}, source
    )
    assert prepare(source, tmp_path, validate=True) == 0
    written = load_file(tmp_path / "loras" / "my lora.safetensors")
    expected = {
        f"diffusion_model.{lora_files.in_layout(layer, layouts.WAN)}": low.factor * up.float() @ down.float()
        for low in lora_files.layers(official)
        for layer, down, up in lora_files.parts(low)
    }
    found = changes(written)
    assert found.keys() == expected.keys()
    assert {tensor.dtype for name, tensor in written.items() if not name.endswith(".alpha")} == {torch.bfloat16}
    for name, change in expected.items():
        assert (found[name] - change).norm() <= 1e-2 * change.norm(), name


def test_official_loras_are_named_after_the_model(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "lora").mkdir(parents=True)
    shutil.copytree(tiny_model / "dit", model / "dit")
    save_file(load("lora_refine.safetensors"), model / "lora" / "refinement_lora.safetensors")
    prepare(model, tmp_path / "comfy")
    assert (tmp_path / "comfy" / "loras" / "longcat_video_refinement_lora.safetensors").is_file()
    prepare(model / "lora", tmp_path / "lora")
    assert files_of(tmp_path / "lora") == ["loras/longcat_video_refinement_lora.safetensors"]
    prepare(model, tmp_path / "official", layout="official")
    assert files_of(tmp_path / "official") == ["dit/config.json", DIT]
    with pytest.raises(ValueError, match="use --layout comfy"):
        prepare(model / "lora", tmp_path / "official", layout="official")


@pytest.mark.parametrize(
    ("metadata", "factor"), [({"transformer.r": 8, "transformer.lora_alpha": 4}, 0.5), ({"transformer.r": 8}, None)]
)
def test_alpha_in_the_metadata(tmp_path: Path, metadata: dict[str, Any], factor: float | None) -> None:
    lora = {
        "transformer.blocks.0.attn.proj.lora_A.weight": torch.ones(8, 4),
        "transformer.blocks.0.attn.proj.lora_B.weight": torch.ones(4, 8),
    }
    save_file(lora, tmp_path / "m.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    if factor is None:
        with pytest.raises(ValueError, match="one rank and one alpha"):
            prepare(tmp_path / "m.safetensors", tmp_path)
    else:
        prepare(tmp_path / "m.safetensors", tmp_path)
        assert (
            load_file(tmp_path / "loras" / "m.safetensors")["diffusion_model.blocks.0.self_attn.o.alpha"] == 8 * factor
        )


def test_a_lora_means_the_same_converted_or_not(tmp_path: Path) -> None:
    """The same reading of a piece, of tensors in memory and of rows of a file."""
    official = load("lora_refine.safetensors")
    for convention, convert in lora_files.CONVENTIONS.items():
        lora = {name: tensor.contiguous() for name, tensor in convert(official).items()}
        save_file(lora, tmp_path / "m.safetensors")
        reader, memory = safetensors_file.Reader([tmp_path / "m.safetensors"]), InMemory(lora)
        for piece in [piece for pieces in LoraFile.of(frozenset(lora)).index.values() for piece in pieces]:
            stored, held = read_change(piece, reader), read_change(piece, memory)
            assert (stored.rows, stored.factor) == (held.rows, held.factor), convention
            assert torch.equal(stored.up.tensor(), held.up.tensor())
            assert stored.down is held.down is None or torch.equal(stored.down.tensor(), held.down.tensor())
        reader.close()


# --- what is refused --------------------------------------------------------------------------------------------------


def broken(official: StateDict, what: str) -> StateDict:
    tensors = dict(official)
    if what == "nan":
        tensors["blocks.1.ffn.w2.weight"] = tensors["blocks.1.ffn.w2.weight"].clone()
        tensors["blocks.1.ffn.w2.weight"][-1, -1] = float("nan")
    elif what == "missing":
        del tensors["blocks.1.ffn.w2.weight"]
    elif what == "avatar":
        tensors["audio_proj.proj1.weight"] = torch.ones(1)
    elif what in ("nvfp4", "settings"):
        tensors["blocks.1.ffn.w2.weight_scale"] = torch.ones(1)
        noted = b'{"format": "nvfp4"}' if what == "nvfp4" else b"[1]"
        tensors["blocks.1.ffn.w2.comfy_quant"] = torch.tensor(list(noted), dtype=torch.uint8)
    elif what == "other":
        tensors = {"conv.weight": torch.ones(1)}
    elif what == "two alphas":
        tensors = {
            f"blocks.0.ffn.w1.{end}": torch.ones(2, 2) for end in ("lora_up.weight", "lora_down.weight", "alpha")
        }
    elif what == "rows of a LoRA":
        tensors = {f"blocks.0.attn.qkv.{end}": torch.ones(2, 2) for end in ("lora_up.weight", "lora_down.weight")}
    elif what == "half a LoRA":
        tensors = {"blocks.0.ffn.w1.lora_up.weight": torch.ones(2, 2)}
    elif what == "unknown LoRA":
        tensors = {
            f"blocks.0.ffn.w1.{end}": torch.ones(2, 2) for end in ("lora_up.weight", "lora_down.weight", "dora_scale")
        }
    return tensors


@pytest.mark.parametrize(
    ("what", "dtype", "said"),
    [
        ("nan", "bf16", r"was not written: blocks\.1\.ffn\.w2\.weight has numbers that are not finite"),
        ("nan", "fp8", r"blocks\.1\.ffn\.w2 has numbers that are not finite"),
        ("nan", "int8", r"blocks\.1\.ffn\.w2 has numbers that are not finite"),
        ("missing", "bf16", r"m\.safetensors: .* 1 missing"),
        ("avatar", "bf16", "Avatar"),
        ("nvfp4", "fp8", "nvfp4.*not converted here"),
        ("settings", "fp8", "a list instead of an object"),
        ("other", "bf16", "another model"),
        ("two alphas", "bf16", "instead of one number"),
        ("rows of a LoRA", "bf16", r"lora_up\.weight is"),
        ("half a LoRA", "bf16", "another model"),
        ("unknown LoRA", "bf16", "1 of its tensors are not understood"),
    ],
)
def test_weights_that_cannot_be_converted(
    official: StateDict, tmp_path: Path, what: str, dtype: str, said: str
) -> None:
    source = tmp_path / "m.safetensors"
    save_file(broken(official, what), source)
    with pytest.raises(ValueError, match=said):
        prepare(source, tmp_path / "dest", dtype)
    assert not files_of(tmp_path / "dest")


def test_sources_and_folders_that_cannot_be_used(tiny_model: Path, tmp_path: Path) -> None:
    def refused(source: Path, dest: Path, said: str, layout: str = "comfy") -> None:
        with pytest.raises(ValueError, match=said):
            prepare(source, dest, layout=layout)

    model = shutil.copytree(tiny_model, tmp_path / "model")
    refused(tmp_path / "none", tmp_path, "holds no weights")
    refused(model / "scheduler", tmp_path, "holds no weights")
    refused(model, model, "SOURCE itself", "official")
    refused(model, model / "tiny_model.json", "is a file")
    refused(model / "dit", model, "is what it would be made from", "official")
    shutil.copy(model / DIT, model / "dit" / "other.safetensors")
    refused(model, tmp_path / "dest", "holds 2 .safetensors files")
    (model / "dit" / "x.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')
    refused(model, tmp_path / "dest", "../other.safetensors missing")
    (model / "dit" / "x.safetensors.index.json").write_text("[]")
    refused(model, tmp_path / "dest", "holds a list instead of an object")
    refused(tiny_model, model, "is of other weights", "official")
    (model / "tokenizer" / "spiece.model").unlink()
    refused(model / "text_encoder", tmp_path / "dest", "spiece.model is missing")
    os.truncate(model / "vae" / "diffusion_pytorch_model.safetensors", 1000)
    refused(model / "vae", tmp_path / "dest", "damaged, incomplete")
    assert not (tmp_path / "dest").exists()


def test_files_for_comfyui_are_no_sources(tiny_model: Path, tmp_path: Path) -> None:
    prepare(tiny_model, tmp_path / "models")
    for name in COMFY_FILES[1:]:
        with pytest.raises(ValueError, match="is a file for ComfyUI's own loaders already"):
            prepare(tmp_path / "models" / f"{name}.safetensors", tmp_path / "again")


def test_two_runs_at_once_write_one_after_the_other(large: Path, converted: tuple, tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            command(large, tmp_path, "--dtype", "fp8"), env=environment(), stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [each.communicate()[1] for each in runs]
    assert sorted(each.returncode for each in runs) == [0, 1]
    assert "Waiting for another run (pid" in "".join(said)
    assert "already there" in "".join(said)
    name = Path("diffusion_models", "longcat_video_fp8.safetensors")
    assert (tmp_path / name).read_bytes() == (converted[0] / name).read_bytes()


def test_files_that_are_there_are_kept_without_force(tiny_model: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    prepare(tiny_model / "vae", dest)
    file = dest / "vae" / "longcat_video_vae.safetensors"
    before = file.read_bytes()
    file.write_bytes(b"mine")
    done = run(tiny_model, dest, status=1)
    (sentence,) = done.stderr.strip().splitlines()
    assert str(file) in sentence
    assert "--force" in sentence
    assert files_of(dest) == ["vae/longcat_video_vae.safetensors"]
    assert file.read_bytes() == b"mine"
    prepare(tiny_model, dest, force=True)
    assert file.read_bytes() == before
    assert len(files_of(dest)) == 3


# --- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_flipped_bit_is_found(
    tiny_model: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture
) -> None:
    prepare(tiny_model / "dit", tmp_path, dtype)
    file = tmp_path / "diffusion_models" / f"longcat_video_{dtype}.safetensors"
    header = safetensors_file.read_header(file)
    content = file.read_bytes()
    ends = ("ffn.w2.weight", "ffn.w2.weight_scale", "ffn.w2.comfy_quant", "adaLN_modulation.1.bias")
    for name in [f"blocks.1.{end}" for end in ends if f"blocks.1.{end}" in header.tensors]:
        position = header.positions[name] + header.tensors[name].nbytes // 2
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert prepare(tiny_model / "dit", tmp_path, dtype, validate=True) == 1
        printed = capsys.readouterr().out
        assert f"different: {name} has other numbers" in printed
        assert "already there, not written again" in printed
    file.write_bytes(content)
    assert prepare(tiny_model / "dit", tmp_path, dtype, validate=True) == 0


def test_other_files_are_told_from_the_source(
    tiny_model: Path, official: StateDict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare(tiny_model / "dit", tmp_path)
    file = tmp_path / "diffusion_models" / "longcat_video_bf16.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    damaged: list[tuple[StateDict | bytes, str]] = [
        ({key: tensor for key, tensor in tensors.items() if key != name}, "1 missing"),
        ({**tensors, "more": torch.ones(1)}, "1 unknown"),
        ({**tensors, name: tensors[name].float()}, f"{name} is .*F32.* not .*BF16"),
        ({**tensors, name: tensors[name][:-1].contiguous()}, f"{name} is "),
        (file.read_bytes()[:-1], "cannot be read"),
    ]
    for content, said in damaged:
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            save_file(content, file)
        assert prepare(tiny_model / "dit", tmp_path, validate=True) == 1
        assert re.search(said, capsys.readouterr().out)


def test_the_command_ends_with_status_1_when_files_differ(tiny_model: Path, tmp_path: Path) -> None:
    prepare(tiny_model / "vae", tmp_path)
    file = tmp_path / "vae" / "longcat_video_vae.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 128
    file.write_bytes(content)
    assert "differs from the source" in run(tiny_model / "vae", tmp_path, "--validate", status=1).stdout


# --- stopped, full, large ---------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    large: Path, converted: tuple[Path, subprocess.CompletedProcess], tmp_path: Path, report: list[str]
) -> None:
    file = tmp_path / "diffusion_models" / "longcat_video_fp8.safetensors"
    journal = safetensors_writer.journal_of(file)
    kill_when(lambda: journal.is_file() and b"." in journal.read_bytes(), large, tmp_path)
    assert not file.exists()
    again = run(large, tmp_path, "--dtype", "fp8")
    whole, done = converted
    assert files_of(tmp_path) == files_of(whole) == ["diffusion_models/longcat_video_fp8.safetensors"]
    assert file.read_bytes() == (whole / file.relative_to(tmp_path)).read_bytes()
    assert written_mb(again) < written_mb(done)
    report.append(f"prepare_weights: killed with {written_mb(again):.0f} of {written_mb(done):.0f} MB to write")


def kill_when(reached: Callable[[], bool], source: Path, dest: Path) -> None:
    """Kill the command and what it started, without warning, as soon as it has come so far."""
    process = subprocess.Popen(
        command(source, dest, "--dtype", "fp8"), env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, "it was finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def written_mb(done: subprocess.CompletedProcess) -> float:
    match = re.search(r"^([\d,.]+) MB in", done.stdout, re.M)
    assert match, done.stdout
    return megabytes(match[1])


def test_files_that_a_stopped_run_finished_are_not_written_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from prepare import writing

    dest, write = tmp_path / "dest", writing.safetensors_writer.write

    def stopped(path: Path, *arguments: Any) -> None:
        if path.parent.name == "vae":
            raise KeyboardInterrupt
        write(path, *arguments)

    monkeypatch.setattr(writing.safetensors_writer, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(tiny_model, dest)
    assert len([name for name in files_of(dest) if name.endswith(".safetensors")]) == 2
    monkeypatch.undo()
    prepare(tiny_model, dest)
    assert capsys.readouterr().out.count("already there, not written again") == 2
    assert len(files_of(dest)) == 3
    assert all(name.endswith(".safetensors") for name in files_of(dest))
    prepare(tiny_model, tmp_path / "whole")
    assert all((dest / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files_of(dest))


def test_a_full_disk_ends_with_a_sentence(large: Path, tmp_path: Path) -> None:
    """A tmpfs that is too small from the start, and one that another program fills while the file is written."""
    arguments = " ".join(f"'{word}'" for word in command(large, tmp_path / "disk" / "models", "--dtype", "fp8"))
    part = tmp_path / "disk" / "models" / "diffusion_models" / "longcat_video_fp8.safetensors.part"
    filler = f"head -c 1G /dev/zero > '{tmp_path}/disk/filler'"
    meanwhile = f"while [ ! -e '{part}' ]; do kill -0 $! || break; sleep 0.01; done; {filler}; wait $!"
    (tmp_path / "disk").mkdir()
    cases = ((20, arguments, "MB are needed"), (200, f"{arguments} & {meanwhile}", "disk is full"))
    for size_mb, script, said in cases:
        done = on_a_small_disk(size_mb, tmp_path / "disk", f"{script}; echo status $?; find '{tmp_path}/disk' -type f")
        assert re.search(f"{said}|File too large", done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        assert "status 1" in done.stdout
        assert "longcat_video" not in done.stdout.partition("status 1")[2]


def on_a_small_disk(size_mb: int, mount: Path, script: str) -> subprocess.CompletedProcess:
    """Run a shell script with a tmpfs at `mount` or, where none may be mounted, with a limit on the size of files."""
    tmpfs = f"mount -t tmpfs -o size={size_mb}m tmpfs '{mount}'"
    own_mounts = ["unshare", "-rm", "bash", "-c"]
    if subprocess.run([*own_mounts, tmpfs], capture_output=True, check=False).returncode:
        own_mounts, tmpfs = ["bash", "-c"], "ulimit -f 20000"
    return subprocess.run(
        [*own_mounts, f"{tmpfs}\n{script}"], env=environment(), capture_output=True, text=True, check=False
    )


def test_memory_does_not_grow_with_the_file(
    large: Path,
    converted: tuple[Path, subprocess.CompletedProcess],
    tiny_model: Path,
    tmp_path: Path,
    report: list[str],
) -> None:
    """What the command prints after writing and after comparing, for a large file and for a tiny one."""
    large_mb = sum(file.stat().st_size for file in (large / "dit").iterdir()) / 1e6
    tiny = run(tiny_model, tmp_path, "--dtype", "fp8", "--validate")
    least, most = (max(map(megabytes, memory_of(done))) for done in (tiny, converted[1]))
    report.append(f"prepare_weights: {large_mb:.0f} MB converted in {most - least:.0f} MB above {least:.0f} MB")
    assert most - least < MAX_GROWTH_MB <= large_mb / 2


def test_the_command_shows_how_far_it_is(converted: tuple[Path, subprocess.CompletedProcess]) -> None:
    _, done = converted
    assert re.search(r"longcat_video_fp8\.safetensors: DiT, [\d.]+ MB", done.stdout)
    assert re.search(r"MB in [\d.]+ s, \d+ MB/s; at most [\d,]+ MB of memory", done.stdout)
    assert re.search(r"float8_e4m3fn +144 +144 +\d\.\d\de", done.stdout)
    assert done.stdout.count("agrees with the source") == 1
    assert "100%" in done.stderr


def memory_of(done: subprocess.CompletedProcess) -> list[str]:
    return re.findall(r"at most ([\d,]+) MB of memory", done.stdout)


def megabytes(text: str) -> float:
    return float(text.replace(",", ""))
