"""The tiny model folder is what it claims to be, and ComfyUI computes with it what the original libraries compute.

Both sides run the same fp32 weights with different operations, so they differ by rounding only: 5e-6 of the largest
value was measured, 3e-5 is allowed, and any two tensors of the VAE swapped show as 1e-1 (or cancel exactly).
"""

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.wan
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from diffusers import AutoencoderKLWan
from tiny.model import make
from tiny.network import DIT_CONFIG, build_dit

from longcat_core.weights import layouts
from longcat_core.weights import vae_umt5 as weights

pytestmark = pytest.mark.usefixtures("comfyui")

DIT_FILE = "diffusion_pytorch_model.safetensors"
TOLERANCE = 3e-5

COVERED_PROMPTS = (
    "",
    "a",
    "A golden retriever runs along a sandy beach at sunset.",
    "  spaces in front, (weights:1.2), [brackets] {and} braces  ",
    "two  spaces, a\ttab, a\nnew line\r\n\n and a no-break\u00a0space",
    "50% of $100 & #1! e-mail@example.com https://example.com/a?b=c_d~e^f`g|h\\i",
    "\"double\" 'single' <less> *more* +plus+ =equal=; semi: colon",
    "\u4e00\u53ea\u732b\u5728\u6d77\u6ee9\u4e0a\u5954\u8dd1\u3002",
    "mixed \u732b and cat",
    "0123456789 " * 40,
)
UNCOVERED_PROMPTS = ("caf\u00e9", "\u041f\u0440\u0438\u0432\u0435\u0442", "\U0001f431 cat", "\ud55c\uad6d\uc5b4")


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


@pytest.fixture(scope="module")
def vaes(tiny_model: Path) -> tuple[Any, AutoencoderKLWan]:
    """ComfyUI's VAE from the renamed tensors, and diffusers' own."""
    original = AutoencoderKLWan.from_pretrained(tiny_model / "vae")
    return comfy.sd.VAE(sd=weights.vae_from_diffusers(original.state_dict())), original


@pytest.fixture(scope="module")
def clip(tiny_model: Path) -> Any:
    """ComfyUI's UMT5 in fp32."""
    folder = tiny_model / "text_encoder"
    config = transformers.UMT5Config.from_pretrained(folder)
    sizes = ("d_ff", "d_kv", "d_model", "num_heads", "num_layers", "vocab_size")
    spiece = np.fromfile(tiny_model / "tokenizer" / "spiece.model", dtype=np.uint8)
    state_dict = weights.umt5_from_transformers(safetensors.torch.load_file(folder / "model.safetensors"))
    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(
            comfy.text_encoders.wan.WanT5Tokenizer, comfy.text_encoders.wan.te(dtype_t5=torch.float32)
        ),
        tokenizer_data={"spiece_model": torch.from_numpy(spiece)},
        state_dict=[state_dict],
        model_options={"umt5xxl_model_config": {name: getattr(config, name) for name in sizes}},
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_model, subfolder="tokenizer")


def comfyui_tokens(clip: Any, prompt: str) -> list[int]:
    """Token ids without padding, the prompt taken literally."""
    (tokens,) = clip.tokenize(prompt, disable_weights=True)["umt5xxl"]
    ids = [token for token, _ in tokens]
    return ids[: ids.index(1) + 1]


def test_vae_names_are_exactly_comfyuis(vaes: tuple[Any, AutoencoderKLWan]) -> None:
    assert set(weights.DIFFUSERS_NAME) == vaes[0].first_stage_model.state_dict().keys()


@pytest.mark.parametrize("frames", [1, 9])
def test_vae_encodes_as_diffusers_does(vaes: tuple[Any, AutoencoderKLWan], frames: int) -> None:
    vae, original = vaes
    pixels = torch.rand(frames, 32, 48, 3, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        video = (2 * pixels - 1).movedim(-1, 0).unsqueeze(0)
        expected = original.encode(video).latent_dist.mode()
    assert expected.shape == (1, 16, (frames - 1) // 4 + 1, 4, 6)
    assert_close(vae.encode(pixels), expected)


@pytest.mark.parametrize("frames", [1, 9])
def test_vae_decodes_as_diffusers_does(vaes: tuple[Any, AutoencoderKLWan], frames: int) -> None:
    vae, original = vaes
    latent = torch.randn(1, 16, (frames - 1) // 4 + 1, 4, 6, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        expected = (original.decode(latent).sample.movedim(1, -1) + 1) / 2
    assert expected.shape == (1, frames, 32, 48, 3)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.5, "clamping would hide differences"
    assert_close(vae.decode(latent), expected)


@pytest.mark.parametrize("prompt", COVERED_PROMPTS)
def test_tokens_are_those_of_transformers(clip: Any, tokenizer: Any, prompt: str) -> None:
    assert comfyui_tokens(clip, prompt) == tokenizer(prompt)["input_ids"]


@pytest.mark.parametrize("prompt", UNCOVERED_PROMPTS)
def test_characters_outside_the_vocabulary_become_bytes(clip: Any, tokenizer: Any, prompt: str) -> None:
    tokens = comfyui_tokens(clip, prompt)
    assert tokenizer.unk_token_id not in tokens
    assert clip.tokenizer.decode(tokens) == prompt


@pytest.mark.parametrize("prompt", COVERED_PROMPTS)
def test_text_encoding_is_that_of_transformers(clip: Any, tokenizer: Any, tiny_model: Path, prompt: str) -> None:
    inputs = tokenizer(prompt, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    num_tokens = int(inputs.attention_mask.sum())
    original = transformers.UMT5EncoderModel.from_pretrained(tiny_model / "text_encoder").eval()
    with torch.no_grad():
        expected = original(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state

    actual = clip.encode_from_tokens(clip.tokenize(prompt, disable_weights=True))
    assert_close(actual[:, :num_tokens], expected[:, :num_tokens])
    assert not actual[:, num_tokens:].any()


def test_every_tensor_of_the_dit_shows_in_its_output(tiny_model: Path) -> None:
    state_dict = safetensors.torch.load_file(tiny_model / "dit" / DIT_FILE)
    assert state_dict.keys() == layouts.tensor_names(DIT_CONFIG["depth"])
    assert {tensor.dtype for tensor in state_dict.values()} == {torch.bfloat16}

    model = build_dit(DIT_CONFIG)
    model.load_state_dict(state_dict)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 3, 4, 4, generator=generator)
    context = torch.randn(1, 8, 32, generator=generator)

    def output() -> torch.Tensor:
        with torch.no_grad():
            return model(x, torch.tensor([700.0]), context)

    expected = output()
    assert 0.1 < expected.std() < 10
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.mul_(0.5)
            assert (output() - expected).abs().max() > 1e-4, name
            parameter.mul_(2)


def test_making_is_reproducible_and_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    make(tmp_path / "whole", seed=1, shards=1)
    make(tmp_path / "sharded", seed=1, shards=3)
    make(tmp_path / "other", seed=2, shards=1)
    shards = sorted((tmp_path / "sharded" / "dit").glob("*.safetensors"))
    assert [shard.name for shard in shards] == [
        f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert (tmp_path / "sharded" / "dit" / f"{DIT_FILE}.index.json").is_file()

    whole = (tmp_path / "whole" / "dit" / DIT_FILE).read_bytes()
    merged = {name: tensor for shard in shards for name, tensor in safetensors.torch.load_file(shard).items()}
    expected = safetensors.torch.load(whole)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    assert whole != (tmp_path / "other" / "dit" / DIT_FILE).read_bytes()
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == ["other", "sharded", "whole"]


def test_a_finished_folder_is_left_alone_and_a_changed_one_is_replaced(tmp_path: Path) -> None:
    dest = tmp_path / "tiny"
    make(dest, seed=1, shards=1)
    mark = dest / "mark"
    mark.touch()
    make(dest, seed=1, shards=1)
    assert mark.exists()
    make(dest, seed=2, shards=1)
    assert not mark.exists()


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="was not written by this script"):
        make(tmp_path / "photos", seed=0, shards=1)
