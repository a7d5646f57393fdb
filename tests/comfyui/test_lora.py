"""LoRA files of every convention through ComfyUI's own LoRA nodes, against the original and against each other."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import checkpoints
import comfy.lora
import comfy.model_management
import comfy.sd
import folder_paths
import lora_files
import pytest
import safetensors.torch
import torch
from goldens import ROOT, Case, assert_fp32, cases
from inprocess import node, sample
from torch import Tensor

from longcat_core.comfyui import lora_adapter
from longcat_core.comfyui.bypass import stack_bypassed
from longcat_core.comfyui.lora_adapter import LongCatLoRA, pack, unpack
from longcat_core.lora.changes import Change
from longcat_core.weights import layouts
from longcat_core.weights.layouts import Rows

NODES = {"merged": "LoraLoaderModelOnly", "bypassed": "LoraLoaderBypassModelOnly"}
CASES = cases("lora")
Applied = list[tuple[str, float]]


@pytest.fixture(scope="module", autouse=True)
def lora_folder() -> Path:
    """ComfyUI's folder of LoRAs, with each of the original's files in every convention."""
    folder = Path(folder_paths.models_dir) / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cfgstep", "refine"):
        official = safetensors.torch.load_file(ROOT / f"lora_{name}.safetensors")
        for convention, convert in lora_files.CONVENTIONS.items():
            lora = {key: tensor.contiguous() for key, tensor in convert(official).items()}
            safetensors.torch.save_file(lora, folder / f"{name}, {convention}.safetensors")
    return folder


@torch.inference_mode()
def network(case: Case, layout: str = layouts.OFFICIAL) -> Any:
    """The network of a case as a MODEL."""
    official = {name: tensor.float() for name, tensor in case.state.items()}
    model = comfy.sd.load_diffusion_model_state_dict(checkpoints.named(official, layout))
    model.model.diffusion_model.text_tokens_zero_pad = case.config["text_tokens_zero_pad"]
    return model


def apply(model: Any, loras: Applied, how: str, convention: str) -> Any:
    """A model behind one LoRA node for each file."""
    for name, strength in loras:
        (model,) = node(NODES[how])(model, f"{name}, {convention}.safetensors", strength)
    return model


@torch.inference_mode()
def forward(model: Any, case: Case) -> Tensor:
    """One call, the weights patched and the LoRAs put in as for sampling."""
    comfy.model_management.load_models_gpu([model])
    stack_bypassed(model)
    i = case.inputs()
    text, mask = i["encoder_hidden_states"].float()[:, 0], i["encoder_attention_mask"]
    return -model.model.diffusion_model(i["hidden_states"].float(), i["timestep"], text, mask)


@pytest.mark.parametrize("how", NODES)
@pytest.mark.parametrize("layout", [layouts.OFFICIAL, layouts.WAN])
@pytest.mark.parametrize("convention", lora_files.CONVENTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_computes_what_the_original_does(case: Case, convention: str, layout: str, how: str) -> None:
    model = apply(network(case, layout), case.args.get("loras", []), how, convention)
    assert_fp32(forward(model, case), case.output("out"), case.noise("out"))


@pytest.mark.parametrize("how", NODES)
def test_removed_it_leaves_the_model_as_it_was(how: str) -> None:
    case = CASES[3]
    model = network(case)
    before = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
    plain = forward(model, case)
    with_loras = forward(apply(model, case.args["loras"], how, "official"), case)
    assert not torch.equal(with_loras, plain)
    assert torch.equal(forward(model, case), plain)
    after = model.model.diffusion_model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("how", NODES)
def test_strength_zero_is_the_model_itself(how: str) -> None:
    case = CASES[0]
    model = network(case)
    assert torch.equal(forward(apply(model, [("refine", 0.0)], how, "official"), case), forward(model, case))


def test_a_merged_and_a_bypassed_one() -> None:
    case = CASES[3]
    (first, second), model = case.args["loras"], network(case)
    mixed = apply(apply(model, [first], "merged", "FastVideo"), [second], "bypassed", "official")
    assert_fp32(forward(mixed, case), case.output("out"), case.noise("out"))


def test_bypassed_twice_and_thrice_again() -> None:
    """The same nodes' outputs, sampled one after the other, each keep the LoRAs that are in front of them."""
    case = CASES[3]
    (first, second), model = case.args["loras"], network(case)
    once = apply(model, [first], "bypassed", "official")
    twice = apply(once, [second], "bypassed", "official")
    thrice = apply(twice, [first], "bypassed", "official")
    alone = [forward(each, case) for each in (once, twice, thrice)]
    assert_fp32(alone[1], case.output("out"), case.noise("out"))
    merged = forward(apply(model, [first, second, first], "merged", "official"), case)
    assert_fp32(alone[2], merged, case.noise("out"))
    for index in (2, 0, 1, 1, 0):
        assert torch.equal(forward((once, twice, thrice)[index], case), alone[index])
    assert_fp32(forward(model, case), CASES[4].output("out"), CASES[4].noise("out"))


def test_sampling_puts_both_in(loaded: tuple, prompts: tuple, empty_latent: dict, lora_folder: Path) -> None:
    """The whole of ComfyUI: two bypassed LoRAs in a row sample what they sample merged."""
    generator = torch.Generator().manual_seed(3)
    names = ("blocks.0.attn.qkv", "blocks.1.ffn.w1")
    for name, rows in zip(names, (192, 256), strict=True):
        lora = {
            f"{name}.lora_A": torch.randn(4, 64, generator=generator) / 8,
            f"{name}.lora_B": torch.randn(rows, 4, generator=generator),
        }
        safetensors.torch.save_file(lora, lora_folder / f"{name}, own.safetensors")
    loras = [(name, 1.0) for name in names]
    plain, merged, bypassed = (
        sample(model, prompts, empty_latent)
        for model in (loaded[0], *(apply(loaded[0], loras, how, "own") for how in ("merged", "bypassed")))
    )
    assert float((merged - bypassed).abs().max()) < 1e-3 * float((merged - plain).abs().max())
    assert torch.equal(sample(loaded[0], prompts, empty_latent), plain)


def test_quantised_weights_take_loras() -> None:
    """Bypassed exactly, as nothing is rounded; merged within the rounding of the weights."""
    case = CASES[3]
    quantised = checkpoints.comfy_quantised(case.state, "int8_tensorwise")
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(quantised)
    plain = forward(model, case)
    merged, bypassed = (
        forward(apply(model, case.args["loras"], how, "official"), case) for how in ("merged", "bypassed")
    )
    change = float((bypassed - plain).norm())
    assert float((merged - bypassed).norm()) < 0.5 * change
    assert torch.equal(forward(model, case), plain)


@pytest.mark.parametrize("layout", [layouts.OFFICIAL, layouts.WAN])
@pytest.mark.parametrize("convention", lora_files.CONVENTIONS)
def test_every_key_is_matched(
    convention: str, layout: str, caplog: pytest.LogCaptureFixture, lora_folder: Path
) -> None:
    with caplog.at_level(logging.INFO):
        apply(network(CASES[0], layout), [("refine", 1.0)], "merged", convention)
    num_keys = len(safetensors.torch.load_file(lora_folder / f"refine, {convention}.safetensors"))
    assert f"LongCat-Video LoRA: {num_keys} of {num_keys} keys matched" in caplog.text
    assert "not loaded" not in caplog.text


def test_keys_that_do_not_match_are_counted(caplog: pytest.LogCaptureFixture, lora_folder: Path) -> None:
    lora = safetensors.torch.load_file(lora_folder / "cfgstep, FastVideo.safetensors")
    lora |= {"blocks.9.ffn.w1.lora_A": torch.ones(1, 1), "blocks.9.ffn.w1.lora_B": torch.ones(1, 1)}
    with caplog.at_level(logging.INFO):
        comfy.sd.load_lora_for_models(network(CASES[0]), None, lora, 1.0, 0)
    assert f"LongCat-Video LoRA: {len(lora) - 2} of {len(lora)} keys matched" in caplog.text
    assert "lora key not loaded: blocks.9.ffn.w1.lora_A" in caplog.text


@pytest.mark.parametrize("how", NODES)
def test_one_of_another_model_is_refused(how: str, lora_folder: Path) -> None:
    flux = {f"transformer.single_transformer_blocks.{i}.attn.to_q.lora_A.weight": torch.ones(2, 2) for i in range(3)}
    safetensors.torch.save_file(flux, lora_folder / "flux, other.safetensors")
    with pytest.raises(ValueError, match="None of this LoRA's 3 tensors is for LongCat-Video, for example transformer"):
        apply(network(CASES[0]), [("flux", 1.0)], how, "other")


def test_one_for_the_text_encoder_alone_is_not(lora_folder: Path) -> None:
    lora = {"text_encoders.umt5xxl.transformer.shared.lora_up.weight": torch.ones(2, 2)}
    comfy.sd.load_lora_for_models(network(CASES[0]), None, lora, 1.0, 0)


@pytest.mark.parametrize("how", NODES)
def test_one_of_other_sizes_is_refused(how: str, lora_folder: Path) -> None:
    """Wan's LoRAs have names that LongCat-Video's split files have too."""
    name = "diffusion_model.blocks.0.self_attn.q"
    wan = {f"{name}.lora_down.weight": torch.ones(2, 96), f"{name}.lora_up.weight": torch.ones(96, 2)}
    safetensors.torch.save_file(wan, lora_folder / "wan, other.safetensors")
    with pytest.raises(ValueError, match=r"96 x 96 matrix; the model has 128 x 128: it was made for another model"):
        forward(apply(network(CASES[0]), [("wan", 1.0)], how, "other"), CASES[0])


@pytest.mark.parametrize("how", NODES)
def test_changes_of_norms_are_not_taken_for_matrices(
    how: str, caplog: pytest.LogCaptureFixture, lora_folder: Path
) -> None:
    lora = safetensors.torch.load_file(lora_folder / "cfgstep, kohya, split.safetensors")
    num_keys = len(lora)
    safetensors.torch.save_file(
        {**lora, "diffusion_model.blocks.0.norm3.diff": torch.ones(128)}, lora_folder / "norm, other.safetensors"
    )
    with caplog.at_level(logging.INFO):
        found = forward(apply(network(CASES[0]), [("norm", 1.0)], how, "other"), CASES[0])
    assert f"LongCat-Video LoRA: {num_keys} of {num_keys + 1} keys matched" in caplog.text
    assert "lora key not loaded: diffusion_model.blocks.0.norm3.diff" in caplog.text
    assert_fp32(found, CASES[0].output("out"), CASES[0].noise("out"))


def test_two_changes_of_one_layer_add_up() -> None:
    """As different conventions in one file may make them."""
    lora = {"blocks.0.ffn.w1.lora_A": torch.eye(2, 128), "blocks.0.ffn.w1.lora_B": torch.ones(512, 2)}
    lora |= {"transformer.blocks.0.ffn.w1.diff": torch.ones(512, 128)}
    keys = ("y_embedder.y_proj.0", "blocks.0.ffn.w1")
    (found,) = comfy.lora.load_lora(lora, {f"diffusion_model.{key}": key for key in keys}).values()
    weight = found.calculate_weight(torch.zeros(512, 128), "key", 1.0, 1.0, None, lambda difference: difference)
    assert torch.equal(weight, torch.ones(512, 128) + torch.ones(512, 2) @ torch.eye(2, 128))


def qkv(lora: Mapping[str, Tensor], layer: str, **further: Tensor) -> dict[str, Tensor]:
    """A LoRA of one layer."""
    return {f"{layer}.{name.replace('_weight', '.weight')}": tensor for name, tensor in (lora | further).items()}


MATRICES = {"lora_down_weight": torch.randn(4, 128), "lora_up_weight": torch.randn(384, 4)}
DORA = {"dora_scale": torch.rand(384, 1) + 0.5}


def changed(lora: dict[str, Tensor], layout: str = layouts.OFFICIAL) -> Tensor:
    """The output with a LoRA merged."""
    with torch.inference_mode():
        model, _ = comfy.sd.load_lora_for_models(network(CASES[0], layout), None, lora, 1.0, 0)
    return forward(model, CASES[0])


@pytest.mark.parametrize("prefix", ["lora_unet_blocks_0_attn_qkv", "diffusion_model.blocks.0.attn.qkv"])
def test_what_core_reads_is_left_to_it(prefix: str) -> None:
    """DoRA, which only core computes."""
    assert not torch.allclose(changed(qkv(MATRICES, prefix, **DORA)), changed(qkv(MATRICES, prefix)), rtol=1e-3)


def test_what_changes_the_meaning_is_refused_where_core_does_not_read_it() -> None:
    with pytest.raises(ValueError, match=r"transformer\.blocks\.0\.attn\.qkv\.dora_scale beside matrices"):
        changed(qkv(MATRICES, "transformer.blocks.0.attn.qkv", **DORA))


def test_core_s_and_other_names_of_one_layer_add_up() -> None:
    part = {"lora_down_weight": torch.randn(2, 128), "lora_up_weight": torch.randn(128, 2)}
    native, foreign = "diffusion_model.blocks.0.attn.qkv", "diffusion_model.blocks.0.self_attn.q"
    with torch.inference_mode():
        model, _ = comfy.sd.load_lora_for_models(network(CASES[0]), None, qkv(MATRICES, native), 1.0, 0)
        model, _ = comfy.sd.load_lora_for_models(model, None, qkv(part, foreign), 1.0, 0)
    both = qkv(MATRICES, native) | qkv(part, foreign)
    assert torch.allclose(changed(both), forward(model, CASES[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lora", "layout", "said"),
    [
        (MATRICES | {"lora_up_weight": torch.ones(384, 3)}, layouts.OFFICIAL, "do not fit each other"),
        (MATRICES | {"lora_up_weight": torch.ones(385, 4)}, layouts.WAN, "do not fit each other"),
        (MATRICES | {"alpha": torch.ones(3)}, layouts.OFFICIAL, "do not fit each other"),
        ({"diff_b": torch.ones(384)}, layouts.OFFICIAL, "in a form that is not read"),
        ({"lokr_w1": torch.ones(4, 4)}, layouts.OFFICIAL, "in a form that is not read"),
    ],
)
def test_tensors_that_cannot_be_read_are_a_sentence(lora: dict, layout: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changed(qkv(lora, "transformer.blocks.0.attn.qkv"), layout)


def test_other_families_are_left_alone() -> None:
    """For a model that is not LongCat-Video's nothing is read, refused or logged, whatever its layers are called."""
    lora = {f"transformer.blocks.0.attn.qkv.lora_{matrix}.weight": torch.ones(2, 2) for matrix in "AB"}
    key_map = {"diffusion_model.blocks.0.attn.qkv": "x", "diffusion_model.final_layer.linear": "y"}
    assert comfy.lora.load_lora(lora, key_map) == {}
    (found,) = comfy.lora.load_lora(lora, {"diffusion_model.y_embedder.y_proj.0": "z", **key_map}).values()
    assert type(found) is LongCatLoRA


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model."])
def test_a_file_whose_alpha_may_be_in_its_metadata_is_named_once(
    prefix: str, caplog: pytest.LogCaptureFixture, lora_folder: Path
) -> None:
    """Whether this pack or ComfyUI reads its names; the other conventions say what they mean."""
    official = safetensors.torch.load_file(lora_folder / "refine, official.safetensors")
    lora = {name: tensor.contiguous() for name, tensor in lora_files.peft(official, prefix).items()}
    safetensors.torch.save_file(lora, lora_folder / "unsure, own.safetensors", {"lora_adapter_metadata": "{}"})
    with caplog.at_level(logging.INFO):
        apply(network(CASES[0]), [("unsure", 1.0)], "merged", "own")
        apply(network(CASES[0]), [("refine", 1.0)], "merged", "FastVideo")
    said = [message for message in caplog.messages if "without alpha" in message]
    assert len(said) == 1
    assert f"{len(lora) // 2} pairs of lora_A and lora_B come without alpha and count with factor 1." in said[0]
    assert "prepare_weights.py" in said[0]


def test_core_is_asked_for_the_layers_in_the_order_that_readings_rely_on() -> None:
    names = [
        name for name in comfy.lora.model_lora_keys_unet(network(CASES[0]).model, {}) if "diffusion_model." in name
    ]
    layers = [name for name in names if not name.endswith(".bias")]
    first_block = next(index for index, name in enumerate(layers) if "blocks." in name)
    assert layers.index(lora_adapter.FAMILY_LAYER) < first_block
    assert layers[-1] == lora_adapter.LAST_LAYER


def test_core_s_record_of_a_file_gets_no_names_but_the_file_s() -> None:
    """What is known of a file lasts as long as core reads it, and is kept elsewhere."""
    lora = qkv(MATRICES, "transformer.blocks.0.attn.qkv")
    seen: set[str] = set()
    for layer in (lora_adapter.FAMILY_LAYER, "diffusion_model.blocks.0.attn.qkv"):
        found = LongCatLoRA.load(layer, lora, None, None, seen)
    assert found is not None
    assert seen == set()
    assert len(lora_adapter.READINGS) == 1
    del seen
    assert not lora_adapter.READINGS


def test_packed_changes_survive_how_core_moves_an_adapter_s_weights() -> None:
    """It copies the tensors that lie at the top of a tuple, and makes plain tuples of those within."""
    changes = [
        Change(Rows(1, 3), 0.5, torch.ones(4, 2), torch.ones(2, 8)),
        Change(Rows(), 1.0, torch.ones(4, 8), None),
    ]
    packed = pack(changes)
    assert sum(isinstance(value, Tensor) for value in packed) == 3
    moved = comfy.lora.prefetch_prepared_value(packed, [0], None, None, False)
    assert type(moved[0]) is tuple
    for found, change in zip(unpack(moved), changes, strict=True):
        assert (found.rows, found.factor) == (change.rows, change.factor)
        assert type(found.rows) is Rows
        assert found.up is change.up
        assert found.down is change.down
