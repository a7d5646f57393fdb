"""LongCatLoader: what it loads, and what it says about folders that it cannot load."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import folder_paths
import pytest
import torch
from inprocess import find_node, node
from safetensors.torch import load_file, save_file

from longcat_core.comfyui import load
from longcat_core.weights import judge

DIT_FILE = "dit/diffusion_pytorch_model.safetensors"
PROMPTS = ("a red ball rolls to the right", "", "(a cat:1.5), [slow]  motion", "word " * 700)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny folder, to damage."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def rewrite(path: Path, change: Callable[[dict], Any]) -> None:
    """Change a JSON or safetensors file."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        content = load_file(path)
        change(content)
        save_file(content, path)


def test_loads_all_three_parts(loaded: tuple[Any, Any, Any]) -> None:
    model, clip, vae = loaded
    assert type(model.model).__name__ == "LongCatVideoModel"
    assert "umt5xxl" in clip.tokenize("a cat")
    assert node("VAEDecode")(vae, {"samples": torch.zeros(1, 16, 2, 4, 4)})[0].shape == (5, 32, 32, 3)


def test_weights_arrive_unchanged(tiny_model: Path, loaded: tuple[Any, Any, Any]) -> None:
    state = loaded[0].model.diffusion_model.state_dict()
    for name, tensor in load_file(tiny_model / DIT_FILE).items():
        assert torch.equal(state[name].float(), tensor.float()), name


def test_shards_load_like_one_file(tiny_model: Path, folder: Path) -> None:
    single = load_file(folder / DIT_FILE)
    (folder / DIT_FILE).unlink()
    names = sorted(single)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: single[key] for key in keys}, folder / "dit" / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "dit" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load.load_dit(folder).model.diffusion_model.state_dict()
    for name, tensor in load.load_dit(tiny_model).model.diffusion_model.state_dict().items():
        assert torch.equal(sharded[name], tensor), name


@pytest.mark.parametrize(
    ("convert", "name", "file"),
    [
        (lambda weights: checkpoints.named(weights, "fastvideo"), "transformer", "model.safetensors"),
        (lambda weights: checkpoints.named(weights, "wan"), "dit", "model.safetensors"),
        (checkpoints.official_int8, "dit", "quantized_model.safetensors"),
    ],
)
def test_folders_of_other_layouts(folder: Path, convert: Callable, name: str, file: str) -> None:
    weights = convert({key: tensor.float() for key, tensor in load_file(folder / DIT_FILE).items()})
    (folder / DIT_FILE).unlink()
    (folder / "dit").rename(folder / name)
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / name / file)
    rewrite(folder / name / "config.json", lambda c: c.update(num_attention_heads=c.pop("num_heads")))
    assert load.find_model_folders([str(folder.parent)]) == {folder.name: folder}
    model = load.load_dit(folder).model.diffusion_model
    assert model.blocks[0].attn.projections == (
        ("qkv",) if "int8" in str(convert) else ("q_linear", "k_linear", "v_linear")
    )


def test_shift_comes_from_the_scheduler_config(folder: Path) -> None:
    rewrite(folder / "scheduler/scheduler_config.json", lambda c: c.update(shift=7.0))
    assert load.load_dit(folder).model.model_sampling.shift == 7.0
    shutil.rmtree(folder / "scheduler")
    assert load.load_dit(folder).model.model_sampling.shift == 12.0


def test_text_padding_flag_comes_from_the_config(folder: Path) -> None:
    assert load.load_dit(folder).model.diffusion_model.text_tokens_zero_pad is True
    rewrite(folder / "dit/config.json", lambda c: c.update(text_tokens_zero_pad=False))
    assert load.load_dit(folder).model.diffusion_model.text_tokens_zero_pad is False


def test_a_folder_is_judged_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged, read_config = [], judge.read_config
    monkeypatch.setattr(judge, "read_config", lambda tensors: judged.append(1) or read_config(tensors))
    load.load_dit(tiny_model)
    assert len(judged) == 1


def test_a_config_in_a_file_s_metadata_counts_as_a_folder_s(folder: Path) -> None:
    file = Path(folder_paths.models_dir) / "diffusion_models" / "with-config.safetensors"
    config = {**json.loads((folder / "dit/config.json").read_text()), "text_tokens_zero_pad": False}
    save_file(load_file(folder / DIT_FILE), file, {"longcat_config": json.dumps(config)})
    assert node("UNETLoader")(file.name, "default")[0].model.diffusion_model.text_tokens_zero_pad is False
    save_file(load_file(folder / DIT_FILE), file, {"longcat_config": json.dumps({**config, "depth": 48})})
    with pytest.raises(ValueError, match=r"depth is 48 in config\.json but 2 in the tensors"):
        node("UNETLoader")(file.name, "default")
    file.unlink()


@pytest.mark.parametrize(
    ("weight_dtype", "stored", "fast"),
    [
        ("fp8_e4m3fn", torch.float8_e4m3fn, False),
        ("fp8_e4m3fn_fast", torch.float8_e4m3fn, True),
        ("fp8_e5m2", torch.float8_e5m2, False),
    ],
)
def test_fp8_weights(tiny_model: Path, weight_dtype: str, stored: torch.dtype, fast: bool) -> None:
    model = node("LongCatLoader")(tiny_model.name, weight_dtype)[0].model
    assert model.diffusion_model.blocks[0].attn.qkv.weight.dtype == stored
    assert model.model_config.optimizations["fp8"] is fast


def test_copies_for_other_devices_can_be_made(loaded: tuple[Any, Any, Any]) -> None:
    """Core makes them with the factory that a loader leaves on the patcher."""
    for patcher in (loaded[0], loaded[1].patcher, loaded[2].patcher):
        factory, arguments = patcher.cached_patcher_init
        fresh = factory(*arguments, disable_dynamic=True)
        assert fresh.model is not patcher.model
        assert not fresh.is_dynamic()
        expected = patcher.model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.model.state_dict().items())


@pytest.mark.parametrize("text", PROMPTS)
def test_tokenizer_json_alone_tokenizes_the_same(tiny_model: Path, folder: Path, text: str) -> None:
    (folder / "tokenizer/spiece.model").unlink()
    with_sentencepiece, with_json = (load.load_text_encoder(f).tokenize(text) for f in (tiny_model, folder))
    assert with_json == with_sentencepiece


def test_folders_are_found_in_extra_model_paths(folder: Path, tiny_model: Path) -> None:
    folder_paths.add_model_folder_path("longcat", str(folder.parent))
    options = find_node("LongCatLoader").INPUT_TYPES()["required"]["folder"][1]["options"]
    assert {"copy", tiny_model.name} <= set(options)


@pytest.mark.parametrize("folder", [None, {"a": 1}, [1, 2, 3]])
def test_linked_or_malformed_folders_are_left_to_core(folder: Any) -> None:
    assert find_node("LongCatLoader").validate_inputs(folder) is True


def test_tokenizer_of_another_model(folder: Path) -> None:
    config, weights = folder / "text_encoder/config.json", folder / "text_encoder/model.safetensors"
    rewrite(config, lambda c: c.update(vocab_size=100))
    rewrite(weights, lambda c: c.update({"shared.weight": c["shared.weight"][:100].clone()}))
    with pytest.raises(ValueError, match=r"has 512 pieces but .* only 100"):
        load.load_text_encoder(folder)


def test_unknown_folder_is_refused_at_validation(tiny_model: Path) -> None:
    said = find_node("LongCatLoader").validate_inputs("LongCat-Video")
    assert "no model folder 'LongCat-Video'" in said
    assert tiny_model.name in said
    assert str(Path(folder_paths.models_dir) / "longcat") in said


@pytest.mark.parametrize(("part", "output", "use"), [("text_encoder", 1, "tokenize"), ("vae", 2, "decode")])
def test_absent_part_is_an_error_only_where_it_is_used(tiny_model: Path, part: str, output: int, use: str) -> None:
    name = f"without-{part}"
    shutil.copytree(tiny_model, tiny_model.parent / name, ignore=shutil.ignore_patterns(part))
    missing = node("LongCatLoader")(name)[output]
    with pytest.raises(AttributeError, match=f"{name} has no {part}/. Download it next to dit/"):
        getattr(missing, use)
    assert not hasattr(missing, use)
    assert not hasattr(copy.deepcopy(missing), use)


def wan_checkpoint() -> dict[str, torch.Tensor]:
    """The tensors by which ComfyUI tells a Wan 2.1 text-to-video model."""
    shapes = {
        "head.modulation": (1, 2, 128),
        "patch_embedding.weight": (128, 16, 1, 2, 2),
        "blocks.0.ffn.0.weight": (512, 128),
        "text_embedding.0.weight": (128, 64),
        "head.head.weight": (64, 128),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def replace_all(content: dict, new: dict) -> None:
    """Swap the content of a file."""
    content.clear()
    content.update(new)


def truncate(path: Path) -> None:
    """Cut a file in half, as a broken download does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


AVATAR = {"audio_proj.proj1.weight": torch.zeros(2), "blocks.0.audio_cross_attn.q_linear.weight": torch.zeros(2)}
DAMAGE = {
    "wan": (lambda f: rewrite(f / DIT_FILE, lambda c: replace_all(c, wan_checkpoint())), "a model of type 'wan2.1'"),
    "avatar": (lambda f: rewrite(f / DIT_FILE, lambda c: c.update(AVATAR)), "This is LongCat-Video-Avatar"),
    "another model": (lambda f: rewrite(f / DIT_FILE, lambda c: replace_all(c, AVATAR | {})), "LongCat-Video"),
    "no weights": (lambda f: (f / DIT_FILE).unlink(), "holds no .safetensors file"),
    "truncated": (lambda f: truncate(f / DIT_FILE), "is damaged, incomplete or no safetensors file"),
    "empty file": (lambda f: (f / DIT_FILE).write_bytes(b""), "is damaged, incomplete or no safetensors file"),
    "not safetensors": (
        lambda f: (f / DIT_FILE).write_text("<html>404</html>" * 99),
        "is damaged, incomplete or no safetensors file",
    ),
    "missing tensor": (lambda f: rewrite(f / DIT_FILE, lambda c: c.pop("blocks.1.attn.proj.bias")), "1 missing"),
    "unknown tensor": (lambda f: rewrite(f / DIT_FILE, lambda c: c.update(extra=torch.zeros(1))), "1 unknown"),
    "no config": (lambda f: (f / "dit/config.json").unlink(), "config.json is missing"),
    "broken config": (lambda f: (f / "dit/config.json").write_text("{"), "is not valid JSON"),
    "config list": (lambda f: (f / "dit/config.json").write_text("[]"), "holds a list instead of an object"),
    "other config": (
        lambda f: rewrite(f / "dit/config.json", lambda c: c.update(hidden_size=4096, depth=48)),
        "hidden_size is 4096 in config.json but 64 in the tensors; depth is 48",
    ),
    "other mlp_ratio": (
        lambda f: rewrite(f / "dit/config.json", lambda c: c.update(mlp_ratio=8)),
        "ffn_hidden_size is 512 in config.json but 256 in the tensors",
    ),
    "flag that is none": (
        lambda f: rewrite(f / "dit/config.json", lambda c: c.update(text_tokens_zero_pad="yes")),
        "text_tokens_zero_pad is 'yes'; it must be true or false",
    ),
    "shift that is none": (
        lambda f: rewrite(f / "scheduler/scheduler_config.json", lambda c: c.update(shift=None)),
        "shift is None; it must be a number",
    ),
    "mlp_ratio that is none": (
        lambda f: rewrite(f / "dit/config.json", lambda c: c.update(mlp_ratio="4")),
        "mlp_ratio is '4'; it must be a number",
    ),
    "shift that is not finite": (
        lambda f: rewrite(f / "scheduler/scheduler_config.json", lambda c: c.update(shift=float("nan"))),
        "shift is nan; it must be a number",
    ),
    "index of numbers": (
        lambda f: (f / "dit/weights.safetensors.index.json").write_text('{"weight_map": {"a": 3}}'),
        "no files listed",
    ),
    "shift of zero": (
        lambda f: rewrite(f / "scheduler/scheduler_config.json", lambda c: c.update(shift=0)),
        "shift is 0; it must be above 0",
    ),
    "index that leads elsewhere": (
        lambda f: (f / "dit/weights.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}})
        ),
        "../vae/diffusion_pytorch_model.safetensors missing",
    ),
    "broken index": (
        lambda f: (f / "dit/weights.safetensors.index.json").write_text('{"weight_map": []}'),
        "no files listed",
    ),
    "no index": (
        lambda f: shutil.copy(f / DIT_FILE, f / "dit/second.safetensors"),
        "holds 2 .safetensors files but no",
    ),
    "missing shard": (
        lambda f: (f / "dit/diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps(
                {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
            )
        ),
        "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors missing",
    ),
}
TEXT_DAMAGE = {
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "without a tokenizer no prompt can be read"),
    "other config": (
        lambda f: rewrite(f / "text_encoder/config.json", lambda c: c.update(d_model=4096)),
        "d_model is 4096 in config.json but 32 in the tensors",
    ),
    "other kind": (lambda f: (f / "text_encoder/config.json").write_text("{}"), "has no whole number above 0 as d_ff"),
    "words": (
        lambda f: rewrite(f / "text_encoder/config.json", lambda c: c.update(num_layers="2")),
        "has no whole number above 0 as num_layers",
    ),
    "no heads": (
        lambda f: rewrite(f / "text_encoder/config.json", lambda c: c.update(num_heads=0)),
        "has no whole number above 0 as num_heads",
    ),
    "broken sentencepiece": (
        lambda f: (f / "tokenizer/spiece.model").write_text("version https://git-lfs"),
        "spiece.model is not a sentencepiece model",
    ),
    "empty sentencepiece": (
        lambda f: (f / "tokenizer/spiece.model").write_bytes(b""),
        "spiece.model is not a sentencepiece model: it is empty",
    ),
    "tokenizer.json of nothing": (
        lambda f: ((f / "tokenizer/spiece.model").unlink(), (f / "tokenizer/tokenizer.json").write_text("{}")),
        "does not describe a tokenizer",
    ),
    "other heads": (
        lambda f: rewrite(f / "text_encoder/config.json", lambda c: c.update(d_kv=32)),
        "d_kv is 32 in config.json but 16 in the tensors",
    ),
    "broken tokenizer.json": (
        lambda f: ((f / "tokenizer/spiece.model").unlink(), (f / "tokenizer/tokenizer.json").write_text("version")),
        "tokenizer.json is not valid JSON",
    ),
    "fewer layers": (
        lambda f: rewrite(f / "text_encoder/config.json", lambda c: c.update(num_layers=3)),
        "missing (for example encoder.block.2",
    ),
    "truncated": (
        lambda f: truncate(f / "text_encoder/model.safetensors"),
        "is damaged, incomplete or no safetensors file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_network(folder: Path, damage: str) -> None:
    apply, said = DAMAGE[damage]
    apply(folder)
    with pytest.raises(ValueError, match="copy") as error:
        load.load_dit(folder)
    assert said in str(error.value)


@pytest.mark.parametrize("damage", TEXT_DAMAGE)
def test_damaged_text_encoder(folder: Path, damage: str) -> None:
    apply, said = TEXT_DAMAGE[damage]
    apply(folder)
    with pytest.raises(ValueError, match="copy") as error:
        load.load_text_encoder(folder)
    assert said in str(error.value)


def test_vae_config_of_another_model(folder: Path) -> None:
    rewrite(folder / "vae/config.json", lambda c: c.update(base_dim=96))
    with pytest.raises(ValueError, match=r"base_dim is 96 in config\.json but 4 in the tensors"):
        load.load_vae(folder)


def test_other_vae(folder: Path) -> None:
    rewrite(folder / "vae/diffusion_pytorch_model.safetensors", lambda c: c.pop("quant_conv.weight"))
    with pytest.raises(ValueError, match=r"is not a Wan 2\.1 VAE as diffusers writes it.*quant_conv\.weight"):
        load.load_vae(folder)
