"""Checkpoints of every layout load through the stock loader, and compute what the official one computes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import checkpoints
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import safetensors.torch
import torch
from goldens import load
from inprocess import node, sample
from tiny.network import randomize
from torch import Tensor

from longcat_core.weights import judge, layouts, quantization
from longcat_core.weights.stored import InMemory

StateDict = dict[str, Tensor]
RELEASED: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 4096,
    "depth": 48,
    "num_heads": 32,
    "caption_channels": 4096,
    "ffn_hidden_size": 11008,
    "adaln_tembed_dim": 512,
    "frequency_embedding_size": 256,
    "patch_size": (1, 2, 2),
}
# Relative L2 error of one forward of a network of random weights; with weights of a trained one it is smaller.
QUANTISED: dict[str, tuple[Callable[[Mapping[str, Tensor]], StateDict], float]] = {
    "scaled fp8": (checkpoints.scaled_fp8, 0.05),
    "scaled fp8 without marker": (lambda official: checkpoints.scaled_fp8(official, marker=False), 0.05),
    "official int8": (checkpoints.official_int8, 0.025),
    "fp8 of this pack": (lambda official: checkpoints.comfy_quantised(official, quantization.FP8), 0.05),
    "int8 of this pack": (lambda official: checkpoints.comfy_quantised(official, quantization.INT8), 0.025),
    "nvfp4": (lambda official: checkpoints.comfy_quantised(official, quantization.NVFP4), 0.15),
}
NUM_TENSORS = {
    "scaled fp8": 1839,
    "scaled fp8 without marker": 1838,
    "official int8": 1459,
    "fp8 of this pack": 1790,
    "int8 of this pack": 1790,
    "nvfp4": 2174,
}


@pytest.fixture(scope="module")
def official() -> StateDict:
    """A tiny network's weights in the released layout, fp32."""
    return {name: tensor.float() for name, tensor in load("models/hd64.safetensors").items()}


def load_file(weights: Mapping[str, Tensor], name: str = "layout.safetensors") -> Any:
    """A MODEL from *Load Diffusion Model*."""
    file = Path(folder_paths.models_dir) / "diffusion_models" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(dict(weights), file)
    return node("UNETLoader")(name, "default")[0]


@torch.inference_mode()
def forward(model: Any) -> Tensor:
    """One call of the network, its weights as the model has them patched."""
    comfy.model_management.load_models_gpu([model])
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 16, 3, 8, 12, generator=generator), torch.randn(1, 9, 64, generator=generator)
    return model.model.diffusion_model(x, torch.tensor([700.0]), text)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_every_layout_computes_the_same(official: StateDict, layout: str, prefix: str) -> None:
    expected = forward(load_file(official))
    weights = checkpoints.named(official, layout)
    model = load_file({f"{prefix}{name}": tensor for name, tensor in weights.items()})
    assert torch.equal(forward(model), expected)
    split = layouts.is_split(layout)
    assert model.model.diffusion_model.state_dict().keys() == layouts.tensor_names(2, split)


@pytest.fixture(scope="module")
def larger() -> StateDict:
    """A network four times as wide, random, fp32."""
    config = {**RELEASED, "hidden_size": 512, "depth": 3, "num_heads": 4, "caption_channels": 64}
    config |= {"ffn_hidden_size": 1536, "adaln_tembed_dim": 128}
    weights = {name: torch.empty(shape) for name, shape in layouts.tensor_shapes(config).items()}
    randomize(weights, torch.Generator().manual_seed(1))
    return weights


@pytest.mark.parametrize("size", ["official", "larger"])
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_layouts_compute_nearly_the_same(
    kind: str, size: str, request: pytest.FixtureRequest, report: list[str]
) -> None:
    make, bound = QUANTISED[kind]
    plain: StateDict = request.getfixturevalue(size)
    model = load_file(make(plain))
    found = error(forward(model), forward(load_file(plain)))
    width = len(plain["x_embedder.proj.bias"])
    report.append(f"{kind}, {width} wide: {found:.4f} from fp32 (relative L2 of one forward, random weights)")
    assert 0 < found < bound
    assert type(model.model.diffusion_model.blocks[0].ffn.w1.weight.data).__name__ == "QuantizedTensor"


def test_split_scales_are_kept(official: StateDict) -> None:
    """The network computes with the very numbers of the file, multiplied out."""
    weights = checkpoints.scaled_fp8(official)
    exact = {
        layouts.to_network(name, layouts.WAN): tensor.float() * weights.get(f"{name[:-7]}.scale_weight", 1.0)
        for name, tensor in weights.items()
        if name.endswith((".weight", ".bias"))
    }
    assert error(forward(load_file(weights)), forward(load_file(exact))) < 1e-6


@pytest.mark.parametrize("kind", [*layouts.LAYOUTS, *QUANTISED])
def test_released_sizes_are_recognised(kind: str) -> None:
    """Names, shapes and dtypes of the real files, without their contents."""
    plain = {name: torch.empty(shape, device="meta") for name, shape in layouts.tensor_shapes(RELEASED).items()}
    if kind in layouts.LAYOUTS:
        tensors = checkpoints.named(plain, kind)
        assert len(tensors) == (1310 if layouts.is_split(kind) else 1022)
    else:
        tensors = released_quantised(kind)
        assert len(tensors) == NUM_TENSORS[kind]
    config = judge.read_config(InMemory(tensors).tensors)
    assert config is not None
    split, foreign = config.pop("split_projections"), judge.is_foreign(tensors)
    assert config == RELEASED
    assert split == (kind in ("split", "wan", "fastvideo", "scaled fp8", "scaled fp8 without marker"))
    assert foreign == (kind in ("official int8", "scaled fp8", "scaled fp8 without marker"))


def released_quantised(kind: str) -> StateDict:
    """The key set of a released quantised file: a small one's, with its block 48 times and the released shapes."""
    small = {**RELEASED, "hidden_size": 128, "depth": 1, "num_heads": 1, "caption_channels": 32, "ffn_hidden_size": 256}
    one_block = QUANTISED[kind][0]({name: torch.zeros(shape) for name, shape in layouts.tensor_shapes(small).items()})
    layout = layouts.WAN if kind.startswith("scaled") else layouts.OFFICIAL
    shapes = layouts.tensor_shapes(RELEASED, layouts.is_split(layout))
    tensors = {}
    for name, tensor in one_block.items():
        shape = shapes.get(layouts.to_network(name.removesuffix("_int8"), layout), tuple(tensor.shape))
        if name.endswith("weight_scale") and tensor.numel() > 1:
            rows, columns = shapes[name.removesuffix("_scale")]
            shape = (rows, columns // 16) if kind == "nvfp4" else (rows, *tensor.shape[1:])
        if tensor.dtype == torch.uint8 and name.endswith(".weight"):
            shape = (shape[0], shape[1] // 2)
        for block in range(48) if name.startswith("blocks.0.") else [0]:
            released = name.replace("blocks.0.", f"blocks.{block}.")
            tensors[released] = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return tensors


WRONG = {
    "missing": (lambda w, name: w.pop(name), "1 missing (for example {name})"),
    "surplus": (
        lambda w, name: w.update({"blocks.0.extra.weight": torch.zeros(1)}),
        "1 unknown (for example blocks.0.extra",
    ),
    "wrong shape": (lambda w, name: w.update({name: w[name][1:]}), "1 of a wrong shape (for example {name} with [127"),
    "wrong dtype": (
        lambda w, name: w.update({name: w[name].int()}),
        "1 of a wrong dtype (for example {name}",
    ),
    "not finite": (
        lambda w, name: w.update({name: w[name] * float("nan")}),
        "numbers that are not finite (for example {name})",
    ),
    "first block": (lambda w, name: w.pop(name.replace("blocks.1.", "blocks.0.")), "1 missing"),
    "another block": (lambda w, name: w.update({name.replace("blocks.1.", "blocks.7."): w[name] + 1}), "missing"),
}


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named(official: StateDict, kind: str, layout: str) -> None:
    spoil, said = WRONG[kind]
    weights = checkpoints.named(official, layout)
    name = layouts.from_network("blocks.1.attn.proj.weight", layout)
    spoil(weights, name)
    with pytest.raises(ValueError, match="LongCat-Video checkpoint") as caught:
        load_file(weights)
    assert said.format(name=name) in str(caught.value)


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_scale_that_is_lost_or_does_not_fit_is_named(official: StateDict, kind: str) -> None:
    weights = QUANTISED[kind][0](official)
    name = next(name for name in weights if name.endswith(("scale_weight", "weight_scale")) and "blocks.1." in name)
    for spoiled in ({**weights, name: torch.ones(3)}, {key: w for key, w in weights.items() if key != name}):
        with pytest.raises(ValueError, match="scale") as caught:
            load_file(spoiled)
        assert "blocks.1." in str(caught.value)


def test_large_tensors_that_are_not_finite_are_noticed_when_sampling_ends(
    loaded: tuple, prompts: tuple, empty_latent: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "CHECKED_SIZE", 100)
    weights = {name: tensor.clone() for name, tensor in loaded[0].model.diffusion_model.state_dict().items()}
    weights["blocks.1.ffn.w3.weight"][3, 5] = float("nan")
    model = load_file(weights)
    with pytest.raises(ValueError, match="Sampling ended with numbers that are not finite"):
        sample(model, prompts, empty_latent)
    assert torch.isfinite(sample(loaded[0], prompts, empty_latent)).all()


def test_relatives_are_refused_by_name(official: StateDict) -> None:
    mlx = {**official, "x_embedder.proj.weight": official["x_embedder.proj.weight"].movedim(1, -1).contiguous()}
    with pytest.raises(ValueError, match="converted for MLX"):
        load_file(mlx)
    avatar = {**checkpoints.named(official, layouts.WAN), "blocks.0.audio_modulation.1.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match="LongCat-Video-Avatar"):
        load_file(avatar)


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_model_saved_in_fp8_loads_again(official: StateDict, kind: str) -> None:
    """Core rounds the layers that have no scale to plain fp8."""
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(
            QUANTISED[kind][0](official), model_options={"dtype": torch.float8_e4m3fn}
        )
        saved = model.model.state_dict_for_saving(model.model.diffusion_model.state_dict())
        again = comfy.sd.load_diffusion_model_state_dict(dict(saved))
    assert error(forward(again), forward(model)) < 0.05


@pytest.mark.parametrize("quant_format", [quantization.FP8, quantization.INT8])
def test_scales_without_a_marker_are_not_left_out(official: StateDict, quant_format: str) -> None:
    """As prepare_weights reads such a file; fp8 numbers without their scale would be another model."""
    weights = checkpoints.comfy_quantised(official, quant_format)
    unmarked = {name: tensor for name, tensor in weights.items() if not name.endswith("comfy_quant")}
    assert error(forward(load_file(unmarked)), forward(load_file(official))) < 0.05


def test_numbers_that_are_there_twice_are_named(official: StateDict) -> None:
    weights = checkpoints.official_int8(official)
    weights["blocks.1.attn.proj.weight"] = official["blocks.1.attn.proj.weight"]
    with pytest.raises(ValueError, match=r"1 unknown \(for example blocks\.1\.attn\.proj\.weight\)"):
        load_file(weights)


def test_a_format_that_only_core_knows(official: StateDict) -> None:
    mxfp8 = checkpoints.comfy_quantised(official, "mxfp8")
    assert error(forward(load_file(mxfp8)), forward(load_file(official))) < 0.1


def test_scaled_fp8_is_brought_to_core_s_form(official: StateDict) -> None:
    """Byte for byte as core brings files with the marker, their inputs' scales included."""
    weights = checkpoints.scaled_fp8(official)
    for name in list(weights):
        if name.endswith("scale_weight"):
            weights[name.replace("scale_weight", "scale_input")] = torch.tensor(0.25)
    by_core, _ = comfy.utils.convert_old_quants(dict(weights))
    del weights["scaled_fp8"]
    expected, found = judge.read_weights(by_core), judge.read_weights(weights)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].float(), tensor.float()), name


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_saved_model_loads_again(official: StateDict, layout: str, tmp_path: Path) -> None:
    model = load_file(checkpoints.named(official, layout))
    expected = forward(model)
    saved = model.model.state_dict_for_saving(model.model.diffusion_model.state_dict())
    names = {name.removeprefix("model.diffusion_model.") for name in saved}
    assert layouts.which_layout(names) == (layouts.WAN if layouts.is_split(layout) else layouts.OFFICIAL)
    assert torch.equal(forward(load_file(saved, "saved.safetensors")), expected)


class Block4(Tensor):
    """A tensor as ComfyUI-GGUF hands it over: raw bytes that know their shape, and no other operation."""

    tensor_shape: torch.Size

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight that the bytes hold."""
        return self.tensor_shape


class BlockOperations(comfy.ops.manual_cast):
    """Operations that alone can read such bytes; here: fp32 numbers, byte by byte."""

    class Linear(comfy.ops.manual_cast.Linear):
        """Multiplies its weight out at each call."""

        def _load_from_state_dict(self, state_dict: StateDict, prefix: str, *args: Any) -> None:
            self.raw = state_dict[f"{prefix}weight"]
            bias = state_dict.get(f"{prefix}bias")
            self.weight = None
            self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            """`[..., in] -> [..., out]`."""
            raw = self.raw
            weight = raw.as_subclass(Tensor).view(torch.float32).view(raw.shape) if type(raw) is Block4 else raw
            return torch.nn.functional.linear(x, weight.to(x.dtype), self.bias)


def test_gguf_tensors_are_only_renamed(official: StateDict) -> None:
    """As ComfyUI-GGUF calls core: operations of its own, tensors of its own type. All but their shape is opaque."""
    weights = checkpoints.named(official, layouts.WAN)
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            raw = tensor.contiguous().view(torch.uint8).as_subclass(Block4)
            raw.tensor_shape = tensor.shape
            weights[name] = raw
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"custom_operations": BlockOperations})
    assert torch.equal(forward(model), forward(load_file(official)))
