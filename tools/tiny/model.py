"""A tiny model folder as the released one is: layout, file formats, and the libraries that write them."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
import transformers

from tiny.network import DIT_CONFIG, randomize, write_random_dit
from tiny.tokenizer import CORPUS, VOCAB_SIZE, write_tokenizer

STAMP = "tiny_model.json"
SCHEDULER_CONFIG = {"shift": 12.0, "use_dynamic_shifting": False, "time_shift_type": "linear"}
UMT5_SIZES = {"d_model": DIT_CONFIG["caption_channels"], "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
VAE_BASE_DIM = 4


def make(dest: Path, seed: int, shards: int) -> None:
    """Write the folder `dest`, or leave it if this module wrote it with the same arguments.

    Raises:
        ValueError: `dest` holds something else.
    """
    stamp = {"seed": seed, "shards": shards, "script": _digest()}
    if (dest / STAMP).is_file():
        if json.loads((dest / STAMP).read_text(encoding="utf-8")) == stamp:
            return
    elif dest.exists():
        raise ValueError(f"{dest} exists and was not written by this script: name a folder that does not exist yet.")

    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}-", dir=dest.parent) as scratch:
        folder = Path(scratch) / dest.name
        write_model(folder, seed, shards)
        (folder / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        if dest.exists():
            shutil.rmtree(dest)
        folder.rename(dest)


def _digest() -> str:
    """Of the code that writes the folder."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def write_model(folder: Path, seed: int, shards: int) -> None:
    """Write all components below `folder`."""
    transformers.utils.logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(seed)

    write_random_dit(folder / "dit", shards, generator)
    diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG).save_pretrained(folder / "scheduler")

    vae = diffusers.AutoencoderKLWan(base_dim=VAE_BASE_DIM)
    randomize(vae.state_dict(), generator)
    vae.save_pretrained(folder / "vae")

    write_tokenizer(folder / "tokenizer", CORPUS, VOCAB_SIZE)
    text_encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(vocab_size=VOCAB_SIZE, **UMT5_SIZES))
    randomize(text_encoder.state_dict(), generator)
    text_encoder.save_pretrained(folder / "text_encoder")
