"""The toy model as a folder in the released layout, and what its training starts from.

The text encoder is a UMT5 with random weights: with 23 words, it need not learn. The VAE and the transformer are
trained by training.py. ComfyUI and the pack must be importable.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tiny.model import SCHEDULER_CONFIG
from tiny.network import randomize, write_dit
from tiny.tokenizer import CORPUS, VOCAB_SIZE, write_tokenizer
from torch import Tensor

from longcat_core.comfyui.load import load_text_encoder
from longcat_core.text import fixed_length
from longcat_core.weights.vae_umt5 import vae_to_diffusers
from toy.clips import SUBJECTS, TRAINED, WORDS, draw, random_clips
from toy.latents import fit

SEED = 0
VAE_WIDTH = 8
TEXT_SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
TEXT_COLUMNS = 11  # the longest prompt has 10 tokens; the last column stands for all the remaining padding
DIT_CONFIG: dict[str, Any] = {
    "_class_name": "LongCatVideoTransformer3DModel",
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 192,
    "depth": 4,
    "num_heads": 6,
    "caption_channels": TEXT_SIZES["d_model"],
    "mlp_ratio": 4,
    "adaln_tembed_dim": 128,
    "frequency_embedding_size": 256,
    "patch_size": (1, 2, 2),
    "enable_bsa": False,
    "text_tokens_zero_pad": True,
}


def prepare(work: Path) -> None:
    """Write the tokenizer, the text encoder, the encoded prompts and the latent space, unless they are there."""
    if (work / "prepared.pt").is_file():
        return
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        write_text_encoder(Path(scratch))
        contexts = encode_prompts(Path(scratch))
    generator = torch.Generator().manual_seed(SEED)
    space = fit(draw(random_clips(TRAINED, 17, generator)))
    save({"contexts": contexts, "space": [tuple(projection) for projection in space]}, work / "prepared.pt")


def write_text_encoder(folder: Path) -> None:
    """Write `tokenizer/` and `text_encoder/`. Pieces that no prompt uses get a zero embedding: they say little."""
    transformers.utils.logging.disable_progress_bar()
    write_tokenizer(folder / "tokenizer", CORPUS, VOCAB_SIZE, WORDS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    config = transformers.UMT5Config(vocab_size=len(tokenizer), **TEXT_SIZES)
    model = transformers.UMT5EncoderModel(config)
    randomize(model.state_dict(), torch.Generator().manual_seed(SEED))
    used = sorted({token for ids in tokenizer([subject.prompt for subject in SUBJECTS])["input_ids"] for token in ids})
    with torch.no_grad():
        embeddings = model.shared.weight
        kept = embeddings[used] * embeddings.shape[1] ** 0.5
        embeddings.zero_()[used] = kept
    model.to(torch.bfloat16).save_pretrained(folder / "text_encoder")


def encode_prompts(folder: Path) -> dict[str, Any]:
    """All prompts and the empty one, encoded as the pack does: context `[N, TEXT_COLUMNS, C]` and mask."""
    clip = load_text_encoder(folder)
    texts = ["", *(subject.prompt for subject in SUBJECTS)]
    pairs = [fixed_length(clip.encode_from_tokens(clip.tokenize(text))) for text in texts]
    context, mask = (torch.cat(parts).float() for parts in zip(*pairs, strict=True))
    if mask[:, TEXT_COLUMNS - 1 :].any():
        raise ValueError(f"A prompt has more than {TEXT_COLUMNS - 1} tokens.")
    return {"texts": texts, "context": context[:, :TEXT_COLUMNS], "mask": mask[:, :TEXT_COLUMNS]}


def load_prepared(work: Path) -> dict[str, Any]:
    """What `prepare` wrote: `contexts`, as of `encode_prompts`, and the tensors of the latent `space`."""
    return torch.load(work / "prepared.pt", weights_only=True)


def export(work: Path, dest: Path) -> None:
    """Write the model folder from the finished parts."""
    states = {
        part: torch.load(work / f"{part}.pt", weights_only=True)["module"] for part in ("encoder", "decoder", "dit")
    }
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent) as scratch:
        folder = Path(scratch) / "toy"
        write_text_encoder(folder)
        diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG).save_pretrained(folder / "scheduler")
        weights = dict(vae_weights(states["encoder"], "encoder", "conv1"))
        weights |= dict(vae_weights(states["decoder"], "decoder", "conv2"))
        vae = diffusers.AutoencoderKLWan(base_dim=VAE_WIDTH)
        vae.load_state_dict(vae_to_diffusers(weights))
        vae.to(torch.bfloat16).save_pretrained(folder / "vae")
        write_dit(folder / "dit", DIT_CONFIG, states["dit"])
        if dest.exists():
            dest.rename(Path(scratch) / "old")
        folder.rename(dest)
    size = sum(path.stat().st_size for path in dest.rglob("*") if path.is_file())
    print(f"{dest}: {size / 1e6:.1f} MB")


def vae_weights(state: dict[str, Tensor], half: str, conv: str) -> Iterable[tuple[str, Tensor]]:
    """Names of a trained half as the whole VAE has them."""
    for name, tensor in state.items():
        yield name if name.startswith(half) else name.replace("conv", conv, 1), tensor


def save(state: Any, path: Path) -> None:
    """Write a checkpoint under a temporary name first, so that an interruption leaves the old one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)
