"""ComfyUI learns about the model family, and about nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import comfy.latent_formats
import comfy.model_detection
import comfy.samplers
import comfy.sd
import comfy.supported_models
import pytest
import torch
from goldens import load, manifest

from longcat_core.comfyui import family
from longcat_core.weights.layouts import tensor_names

PACK = Path(__file__).resolve().parents[2]
DETECTION_TEST = Path("tests-unit", "comfy_test", "model_detection_test.py")


def run_python(code: str, comfyui: Path) -> str:
    """Output of a fresh Python that has ComfyUI, but no custom node, on its path."""
    setup = f"import sys; sys.path[:0] = [{str(comfyui)!r}]; sys.path.append({str(PACK)!r})\n"
    setup += "import comfy.cli_args; comfy.cli_args.args.cpu = True\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", setup + code]
    done = subprocess.run(command, cwd=comfyui, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def avatar_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the tensors by which LongCat-Video-Avatar differs."""
    extra = ("audio_proj.proj1.weight", "blocks.0.pre_video_crs_attn_norm.weight")
    return {**state, **{name: torch.empty(2) for name in extra}}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", ["hd64", "hd128"])
def test_detects_the_released_layout(name: str, prefix: str) -> None:
    state = {prefix + key: tensor for key, tensor in load(f"models/{name}.safetensors").items()}
    found = comfy.model_detection.detect_unet_config(state, prefix)
    config = {key: value for key, value in manifest()["models"][name]["config"].items() if key in found}
    assert found["image_model"] == "longcat_video"
    assert {**config, "patch_size": tuple(config["patch_size"])} == {key: found[key] for key in config}
    assert len(config) == 9
    assert set(state) == {prefix + key for key in tensor_names(found["depth"])}


def test_model_is_a_first_class_flow_model() -> None:
    patcher = comfy.sd.load_diffusion_model_state_dict(load("models/hd64.safetensors").copy())
    assert type(patcher.model.latent_format) is comfy.latent_formats.Wan21
    assert patcher.model.model_config.supported_inference_dtypes == [torch.bfloat16, torch.float32]
    # Core's rule for Wan: the width over 2222. It decides how much is offloaded.
    assert patcher.model.memory_usage_factor == 128 / 2222
    assert patcher.model.model_sampling.shift == 12.0
    assert patcher.model.model_sampling.timestep(torch.tensor(0.5)) == 500.0


def test_avatar_is_refused() -> None:
    state = avatar_of(load("models/hd64.safetensors"))
    with pytest.raises(ValueError, match="This is LongCat-Video-Avatar, which needs audio"):
        comfy.model_detection.detect_unet_config(state, "")


def test_incomplete_checkpoint_is_refused_by_stock_loading() -> None:
    state = load("models/hd64.safetensors").copy()
    del state["blocks.1.ffn.w3.weight"]
    with pytest.raises(ValueError, match=r"1 missing \(for example blocks\.1\.ffn\.w3\.weight\)"):
        comfy.sd.load_diffusion_model_state_dict(state)


def test_second_registration_changes_nothing() -> None:
    before = comfy.model_detection.detect_unet_config, len(comfy.supported_models.models)
    family.register()
    assert (comfy.model_detection.detect_unet_config, len(comfy.supported_models.models)) == before
    assert comfy.samplers.SCHEDULER_NAMES.count("longcat") == 1


def test_core_is_asked_first() -> None:
    answers = {"known": {"image_model": "known"}}
    asked = family.core_then_longcat(lambda state, key_prefix, metadata=None: answers.get(metadata))
    state = load("models/hd64.safetensors")
    assert asked(state, "", metadata="known") == {"image_model": "known"}
    assert asked(state, "")["image_model"] == "longcat_video"
    assert asked({}, "") is None


def test_core_detection_tests_pass_with_the_pack(comfyui: Path) -> None:
    code = f"""
import pytest
from longcat_core.comfyui import family
family.register()
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", {str(comfyui / DETECTION_TEST)!r}]))
"""
    assert " passed" in run_python(code, comfyui)


def test_other_families_are_detected_as_before(comfyui: Path) -> None:
    """Every synthetic checkpoint of core's own test gives the same answer with and without the hook."""
    code = f"""
import importlib.util, inspect
import comfy.model_detection
from longcat_core.comfyui import family
spec = importlib.util.spec_from_file_location("core_test", {str(comfyui / DETECTION_TEST)!r})
core_test = importlib.util.module_from_spec(spec); spec.loader.exec_module(core_test)
makers = [f for name, f in vars(core_test).items() if name.startswith("_make_")]
core = comfy.model_detection.detect_unet_config
family.register()
states = [maker() for maker in makers]
assert all(core(state, "") == comfy.model_detection.detect_unet_config(state, "") for state in states)
assert all(core(state, "") is not None for state in states)
print(len(states), "families")
"""
    assert int(run_python(code, comfyui).split()[-2]) >= 7


def test_core_package_works_without_the_node_layer(comfyui: Path) -> None:
    code = """
from longcat_core.comfyui import family
family.register()
assert "nodes" not in sys.modules and "folder_paths" not in sys.modules
print("registered")
"""
    assert "registered" in run_python(code, comfyui)


def test_import_is_fast(comfyui: Path, report: list[str]) -> None:
    """Measured in a process that has loaded what ComfyUI has loaded when it comes to custom nodes.

    Its own time on a processor counts, whatever else runs. What is there is frozen: Python now and then collects
    garbage among all of it, whoever happens to run.
    """
    code = f"""
import asyncio, gc, time
import nodes, server, comfy_extras.nodes_custom_sampler, comfy_api.latest, comfy_config.config_parser
gc.freeze()
started = time.process_time()
assert asyncio.run(nodes.load_custom_node({str(PACK)!r}))
print("seconds", time.process_time() - started)
"""
    seconds = min(float(run_python(code, comfyui).split()[-1]) for _ in range(3))
    report.append(f"the pack adds {seconds:.2f} s to ComfyUI's start")
    assert seconds < 0.3


def test_scheduler_refuses_models_without_a_shift() -> None:
    with pytest.raises(ValueError, match="Connect a LongCat-Video model"):
        comfy.samplers.calculate_sigmas(object(), "longcat", 8)
