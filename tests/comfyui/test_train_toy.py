"""The recipe of the toy model, and the folder that it wrote."""

import math
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from graphs import PACK
from safetensors import safe_open

ASSETS = PACK / "assets"
TOY_BYTES = 12e6
COMPONENTS = {"dit", "scheduler", "text_encoder", "tokenizer", "vae"}


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe, with core's layers in training."""
    from toy import training

    monkeypatch.setattr(comfy.model_management, "in_training", True)
    return training


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder that training can start from."""
    from toy.folder import prepare

    folder = tmp_path_factory.mktemp("work")
    prepare(folder)
    return folder


def weights(work: Path, part: str) -> dict[str, torch.Tensor]:
    """What a finished part learned."""
    return torch.load(work / f"{part}.pt", weights_only=True)["module"]


@pytest.mark.parametrize("part", ["encoder", "decoder", "dit"])
def test_a_stopped_training_goes_on_as_if_it_had_not(
    training: Any, work: Path, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, stop = (training.Round(2, 1.0), training.Round(1, 0.5)), 1
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 0.0)
    (tmp_path / "prepared.pt").write_bytes((work / "prepared.pt").read_bytes())
    training.train(part, work, rounds)

    with pytest.MonkeyPatch.context() as patch:
        add = training.Log.add

        def stopped(log: Any, step: int, *args: Any) -> None:
            if step > stop:
                raise KeyboardInterrupt
            add(log, step, *args)

        patch.setattr(training.Log, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            training.train(part, tmp_path, rounds)
    training.train(part, tmp_path, rounds)

    whole, parts = weights(work, part), weights(tmp_path, part)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_the_learning_rate_falls_to_0_in_every_round(training: Any) -> None:
    rounds = (training.Round(1000, 1.0), training.Round(500, 0.5))
    rates = [training.learning_rate(step, rounds) for step in range(1500)]
    assert rates[0] < rates[59] == rates[399] == 1.0
    assert rates[399] > rates[700] > rates[999] < 1e-4
    assert max(rates[1000:]) == pytest.approx(0.5, abs=0.02)
    assert rates[1499] < 1e-4


def test_one_column_counts_for_all_padding(training: Any, work: Path) -> None:
    """What is trained on 11 text columns is what runs on 512."""
    from tiny.network import build_dit, randomize
    from toy.folder import DIT_CONFIG, TEXT_COLUMNS, load_prepared
    from toy.tasks import TEXT_TOKENS, attend_to_padding

    network = build_dit(DIT_CONFIG)
    generator = torch.Generator().manual_seed(0)
    randomize(network.state_dict(), generator)
    texts = load_prepared(work)["contexts"]
    context, mask = texts["context"][:3], texts["mask"][:3]
    padding = TEXT_TOKENS - TEXT_COLUMNS
    x = torch.randn(3, 16, 2, 8, 8, generator=generator)
    timestep = torch.tensor([900.0, 500.0, 10.0])
    options = {"optimized_attention_override": attend_to_padding}
    with torch.no_grad():
        short = network(x, timestep, context, mask, transformer_options=options)
        padded = torch.nn.functional.pad(context, (0, 0, 0, padding)), torch.nn.functional.pad(mask, (0, padding))
        whole = network(x, timestep, *padded)
        without = network(x, timestep, context, mask)
    scale = whole.norm()
    assert (short - whole).norm() / scale < 1e-5
    assert (without - whole).norm() / scale > 1e-2


def test_latents_have_unit_variance_and_keep_the_picture(training: Any, work: Path) -> None:
    from toy.clips import HELD_OUT, draw, random_clips
    from toy.folder import load_prepared
    from toy.latents import LatentSpace

    space = LatentSpace.of(load_prepared(work)["space"])
    clips = draw(random_clips(HELD_OUT, 17, torch.Generator().manual_seed(1)))
    latents = space.encode(clips)
    assert latents.shape == (len(HELD_OUT), 16, 5, 8, 8)
    assert 0.8 < latents.std(dim=(0, 2, 3, 4)).min() < latents.std(dim=(0, 2, 3, 4)).max() < 1.2
    first = clips[:, :, 0].unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3)
    restored = latents[:, :, 0].permute(0, 2, 3, 1) @ torch.linalg.pinv(space.first.matrix) + space.first.mean
    error = (restored - first).square().mean().item()
    assert 10 * math.log10(4 / error) > 28


def test_muon_steps_have_singular_values_near_one() -> None:
    from toy.muon import Muon

    kernel = torch.nn.Parameter(torch.zeros(12, 4, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0))
    Muon([kernel], lr=1.0).step()
    values = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert 0.6 < values.min() < values.max() < 1.3


def test_the_toy_is_a_small_folder_in_bf16() -> None:
    folder = ASSETS / "toy"
    assert {path.name for path in folder.iterdir()} == COMPONENTS
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= TOY_BYTES
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in sorted(file.keys())} == {"BF16"}


def test_packages_leave_the_toy_out() -> None:
    assert "assets/" in (PACK / ".comfyignore").read_text(encoding="utf-8").split()
