"""What makes long videos start anew, and what does not: the nodes in this process, on real files of weights."""

import copy
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import folder_paths
import nodes
import pytest
import safetensors.torch
import torch
from comfy_api.latest import io
from comfy_execution.graph import DynamicPrompt
from comfy_extras.nodes_primitive import String
from inprocess import find_node, node

from longcat_core.segments.contents import memory_digest

Prompt = dict[str, dict]
DIT, TEXT_ENCODER, VAE = "dit", "text_encoder", "vae"
LORA, DIT_FILE = "mine.safetensors", "contents.safetensors"


class Changing:
    """A node whose output is no function of its inputs, and which says so, as nodes for random prompts do."""

    FUNCTION = "make"
    CATEGORY = "tests"
    current: Any = None

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802 - ComfyUI's V1 node interface
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> Any:  # noqa: N802 - ComfyUI's V1 node interface
        return cls.current

    def make(self) -> tuple:
        return (self.current,)


class Selection:
    """MODEL -> MODEL with a choice of several names."""

    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802 - ComfyUI's V1 node interface
        return {"required": {"model": ("MODEL",), "names": (["a", "b", "c"], {"multiselect": True})}}

    def make(self, model: Any, names: list[str]) -> tuple:
        return (model,)


class Runner:
    """Runs prompts without a server, and says which of the segments were made anew."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.made: dict[str, tuple] = {}

    def files(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self.output.rglob("*.latent")}

    @torch.inference_mode()
    def outputs(self, prompt: Prompt, node_id: str) -> tuple:
        """Of a node; nodes before it run once until `forget`, as ComfyUI remembers what they made."""
        kind, values = prompt[node_id]["class_type"], {}
        for name, value in prompt[node_id]["inputs"].items():
            is_link = isinstance(value, list) and isinstance(value[1], int)
            values[name] = self.remembered(prompt, value[0])[value[1]] if is_link else value
        if kind not in ("LongCatStoryboard", "LongCatRefineVideo"):
            return node(kind)(**values)
        hidden = {io.Hidden.unique_id: node_id, io.Hidden.dynprompt: DynamicPrompt(copy.deepcopy(prompt))}
        return find_node(kind).PREPARE_CLASS_CLONE({"hidden_inputs": hidden}).execute(**values).args

    def remembered(self, prompt: Prompt, node_id: str) -> tuple:
        if node_id not in self.made:
            self.made[node_id] = self.outputs(prompt, node_id)
        return self.made[node_id]

    def forget(self) -> None:
        self.made.clear()

    def is_made_anew(self, prompt: Prompt) -> bool:
        before = self.files()
        self.outputs(prompt, "video")
        return self.files() != before


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    module = sys.modules[find_node("LongCatStoryboard").__module__]
    server = SimpleNamespace(send_progress_text=lambda text, node_id: None)
    monkeypatch.setattr(sys.modules[module.host_of.__module__].PromptServer, "instance", server, raising=False)
    known = {
        "TestChanging": Changing,
        "TestSelection": Selection,
        **{name: find_node(name) for name in ("ModelSamplingSD3", "LoraLoaderBypassModelOnly")},
        "PrimitiveString": String,
    }
    for name, found in known.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, found)
    return Runner(tmp_path)


@pytest.fixture
def mine(tiny_model: Path) -> Iterator[Path]:
    """A copy of the tiny model folder, a file of its network, and a LoRA, all of which may be replaced."""
    models = Path(folder_paths.models_dir)
    folder = models / "longcat" / "mine"
    shutil.copytree(tiny_model, folder)
    (models / "loras").mkdir(exist_ok=True)
    write_lora(models / "loras" / LORA, tiny_model, 0)
    shutil.copy(next((tiny_model / DIT).glob("*.safetensors")), models / "diffusion_models" / DIT_FILE)
    yield folder
    for path in (models / "longcat").glob("mine*"):
        shutil.rmtree(path)
    for path in [*models.glob(f"**/{LORA}"), *models.glob(f"**/{DIT_FILE}")]:
        path.unlink()


def write_lora(path: Path, tiny_model: Path, seed: int) -> None:
    """A LoRA for one layer of the tiny network."""
    path.parent.mkdir(exist_ok=True)
    weights = safetensors.torch.load_file(next((tiny_model / DIT).glob("*.safetensors")))
    name = next(name for name in sorted(weights) if name.endswith("attn.proj.weight"))
    rows, columns = weights[name].shape
    random = torch.Generator().manual_seed(seed)
    layer = f"diffusion_model.{name.removesuffix('.weight')}"
    matrices = {"lora_A": torch.randn(2, columns, generator=random), "lora_B": torch.randn(rows, 2, generator=random)}
    safetensors.torch.save_file({f"{layer}.{key}.weight": value for key, value in matrices.items()}, path)


def replace_weights(path: Path, least_dimensions: int = 0) -> None:
    """Other weights of the same sizes under the same name; with 2 dimensions at least, only matrices are others."""
    weights = safetensors.torch.load_file(path)
    changes = {name: w.is_floating_point() and w.ndim >= least_dimensions for name, w in weights.items()}
    other = {name: (w + 0.05 if changes[name] else w).contiguous() for name, w in weights.items()}
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    path.unlink()
    safetensors.torch.save_file(other, path, metadata)


def loader(folder: str = "mine", **inputs: Any) -> dict:
    return {"class_type": "LongCatLoader", "inputs": {"folder": folder, **inputs}}


def storyboard(**more: dict) -> Prompt:
    """One short segment."""
    inputs = {
        **{"model": ["model", 0], "clip": ["loader", 1], "vae": ["loader", 2], "prompts": "a cat", "negative": ""},
        **{"segments": 0, "width": 32, "height": 32, "length": 5, "num_cond_frames": 1, "seed": 3},
        **{"seed_policy": "increment", "steps": 1, "cfg": 1.0, "mode": "base", "filename_prefix": "story"},
    }
    video = {"class_type": "LongCatStoryboard", "inputs": inputs}
    return {"loader": loader(), "model": sampling(["loader", 0]), "video": video, **more}


def refine_video(**more: dict) -> Prompt:
    """One short segment."""
    inputs = {
        **{"model": ["model", 0], "positive": ["text", 0], "vae": ["loader", 2], "frames": ["frames", 0]},
        **{"mode": "spatial", "seed": 3, "steps": 50, "filename_prefix": "refined", "length": 5},
        **{"num_cond_frames": 1, "size": "custom", "width": 32, "height": 32},
    }
    return {
        "loader": loader(),
        "model": sampling(["loader", 0]),
        "text": {"class_type": "LongCatTextEncode", "inputs": {"clip": ["loader", 1], "text": "a cat"}},
        "frames": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 5}},
        "video": {"class_type": "LongCatRefineVideo", "inputs": inputs},
        **more,
    }


def sampling(model: list, shift: Any = 12.0) -> dict:
    return {"class_type": "ModelSamplingSD3", "inputs": {"model": model, "shift": shift}}


BOTH = pytest.mark.parametrize("make", [storyboard, refine_video])


@BOTH
@pytest.mark.parametrize("part", [DIT, TEXT_ENCODER, VAE])
def test_weights_that_are_replaced_under_their_name_start_anew(
    runner: Runner, mine: Path, make: Any, part: str
) -> None:
    before = runner.outputs(make(), "video")[0]
    runner.forget()
    assert not runner.is_made_anew(make())
    replace_weights(next((mine / part).glob("*.safetensors")))
    runner.forget()
    assert runner.is_made_anew(make())
    after = runner.outputs(make(), "video")[0]
    assert not torch.equal(before, after)


@BOTH
def test_the_same_files_in_another_folder_go_on(runner: Runner, mine: Path, make: Any) -> None:
    assert runner.is_made_anew(make())
    shutil.copytree(mine, mine.with_name("mine, copied"))
    shutil.rmtree(mine)
    runner.forget()
    assert not runner.is_made_anew(make(loader=loader("mine, copied")))


def test_a_file_that_is_no_part_of_the_model_does_not_count(runner: Runner, mine: Path) -> None:
    """A LoRA in the folder, a note, what a downloader keeps."""
    assert runner.is_made_anew(storyboard())
    for name in ("lora/other.safetensors", "README.md", "dit/.cache/note", "dit/.gitattributes"):
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_text("new")
    runner.forget()
    assert not runner.is_made_anew(storyboard())


def single_files(dit: Any, lora: Any) -> Prompt:
    """The network from a file of its own, with a LoRA."""
    unet = {"class_type": "UNETLoader", "inputs": {"unet_name": dit, "weight_dtype": "default"}}
    inputs = {"model": ["unet", 0], "lora_name": lora, "strength_model": 1.0}
    return storyboard(unet=unet, model={"class_type": "LoraLoaderModelOnly", "inputs": inputs})


@pytest.mark.parametrize("replaced", ["dit", "lora"])
@pytest.mark.parametrize("linked", [False, True], ids=["", "names from other nodes"])
def test_a_file_that_is_replaced_under_its_name_starts_anew(
    runner: Runner, mine: Path, tiny_model: Path, replaced: str, linked: bool
) -> None:
    """And one that is only moved and renamed does not."""

    def prompt(dit: str, lora: str) -> Prompt:
        texts = {
            name: {"class_type": "PrimitiveString", "inputs": {"value": value}}
            for name, value in {"dit": dit, "lora": lora}.items()
        }
        return single_files(["dit", 0], ["lora", 0]) | texts if linked else single_files(dit, lora)

    models = Path(folder_paths.models_dir)
    files = {"dit": models / "diffusion_models" / DIT_FILE, "lora": models / "loras" / LORA}
    assert runner.is_made_anew(prompt(DIT_FILE, LORA))
    for path in files.values():
        (path.parent / "moved").mkdir(exist_ok=True)
        path.rename(path.parent / "moved" / path.name)
    runner.forget()
    assert not runner.is_made_anew(prompt(f"moved/{DIT_FILE}", f"moved/{LORA}"))
    if replaced == "dit":
        replace_weights(files["dit"].parent / "moved" / DIT_FILE)
    else:
        write_lora(files["lora"].parent / "moved" / LORA, tiny_model, 1)
    runner.forget()
    assert runner.is_made_anew(prompt(f"moved/{DIT_FILE}", f"moved/{LORA}"))


def test_a_loader_that_ran_before_its_file_was_replaced_still_gives_the_old_weights(runner: Runner, mine: Path) -> None:
    """What is made with them is not taken for what the new ones give."""
    assert runner.is_made_anew(storyboard())
    replace_weights(next((mine / DIT).glob("*.safetensors")))
    runner.outputs(storyboard(), "video")
    runner.forget()
    assert runner.is_made_anew(storyboard())


@pytest.mark.parametrize("replaced", ["matrices of the network", "merged LoRA", "bypassed LoRA"])
def test_what_a_cached_loader_gave_is_not_taken_for_what_its_file_holds_now(
    runner: Runner, mine: Path, tiny_model: Path, replaced: str
) -> None:
    """Also where nothing that is plainly in memory differs."""
    models, prompt = Path(folder_paths.models_dir), single_files(DIT_FILE, LORA)
    if replaced == "bypassed LoRA":
        prompt["model"]["class_type"] = "LoraLoaderBypassModelOnly"
    assert runner.is_made_anew(prompt)
    if replaced == "matrices of the network":
        replace_weights(models / "diffusion_models" / DIT_FILE, least_dimensions=2)
    else:
        write_lora(models / "loras" / LORA, tiny_model, 1)
    other = copy.deepcopy(prompt)
    other["video"]["inputs"]["seed"] += 1
    assert runner.is_made_anew(other)  # with what the loaders still have
    runner.forget()
    assert runner.is_made_anew(other)
    assert not runner.is_made_anew(other)


def test_several_bypassed_loras_are_the_same_before_and_after_they_were_used(
    runner: Runner, mine: Path, tiny_model: Path
) -> None:
    write_lora(Path(folder_paths.models_dir) / "loras" / "second" / LORA, tiny_model, 1)
    prompt = single_files(DIT_FILE, LORA)
    prompt["first"] = copy.deepcopy(prompt["model"])
    prompt["model"]["inputs"] |= {"model": ["first", 0], "lora_name": f"second/{LORA}"}
    for name in ("first", "model"):
        prompt[name]["class_type"] = "LoraLoaderBypassModelOnly"
    assert runner.is_made_anew(prompt)
    assert not runner.is_made_anew(prompt)
    runner.forget()
    assert not runner.is_made_anew(prompt)


def test_a_replaced_model_folder_is_loaded_anew(mine: Path) -> None:
    """ComfyUI runs a node again whose answer to this has changed; a copy of the files gives the same one."""
    ask = find_node("LongCatLoader").fingerprint_inputs
    before = ask("mine")
    shutil.copytree(mine, mine.with_name("mine_too"))
    assert ask("mine_too") == before == ask("mine", "default")
    replace_weights(next((mine / DIT).glob("*.safetensors")))
    assert ask("mine") != before


@BOTH
def test_a_node_that_has_changed_before_the_model_is_noticed(
    runner: Runner, mine: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = make(model=sampling(["loader", 0], ["changing", 0]))
    prompt["changing"] = {"class_type": "TestChanging", "inputs": {}}
    for current, is_new in [(12.0, True), (12.0, False), (5.0, True), (12.0, False)]:
        monkeypatch.setattr(Changing, "current", current)
        runner.forget()
        assert runner.is_made_anew(prompt) == is_new


def test_a_random_prompt_before_refinement_is_noticed(
    runner: Runner, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = refine_video(changing={"class_type": "TestChanging", "inputs": {}})
    prompt["text"]["inputs"]["text"] = ["changing", 0]
    for current, is_new in [("a cat", True), ("a cat", False), ("a dog", True), ("a cat", False)]:
        monkeypatch.setattr(Changing, "current", current)
        runner.forget()
        assert runner.is_made_anew(prompt) == is_new


@BOTH
def test_a_list_of_two_names_is_no_link(runner: Runner, mine: Path, make: Any) -> None:
    def prompt(*names: str) -> Prompt:
        return make(model={"class_type": "TestSelection", "inputs": {"model": ["loader", 0], "names": [*names]}})

    assert runner.is_made_anew(prompt("a", "b"))
    assert not runner.is_made_anew(prompt("a", "b"))
    assert runner.is_made_anew(prompt("a", "c"))


def test_an_input_at_its_default_may_be_left_out(runner: Runner, mine: Path) -> None:
    assert runner.is_made_anew(storyboard())
    assert not runner.is_made_anew(storyboard(loader=loader(weight_dtype="default")))


@torch.inference_mode()
def test_weights_in_memory_are_the_same_wherever_they_lie(mine: Path) -> None:
    """Loaded twice, merged with a LoRA, and given back."""
    digests = []
    for _ in range(2):
        (model, clip, vae) = node("LongCatLoader")("mine")
        (merged,) = node("LoraLoaderModelOnly")(model, LORA, 1.0)
        found = [[memory_digest(part) for part in (model, clip, vae, merged)]]
        comfy.model_management.load_models_gpu([merged, clip.patcher, vae.patcher])
        assert any(merged.backup)
        found.append([memory_digest(part) for part in (model, clip, vae, merged)])
        comfy.model_management.unload_all_models()
        found.append([memory_digest(part) for part in (model, clip, vae, merged)])
        digests += found
    assert all(one == other for one, other in itertools.pairwise(digests))
    assert len(set(digests[0])) == 4
