"""Write a tiny LongCat-Video folder with random weights, for tests and demonstrations without a download.

    COMFYUI_PATH=/path/to/ComfyUI python scripts/make_tiny_model.py DEST [--seed 0] [--shards 1]

The layout, the file formats and the libraries that write them are those of the released folder (dit/, scheduler/,
text_encoder/, tokenizer/, vae/); only the sizes are small. Run it with the Python that runs ComfyUI, plus diffusers.
A DEST that this script has already completed with the same options is left as it is.
"""

import argparse
import contextlib
import hashlib
import inspect
import io
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACK = Path(__file__).resolve().parent.parent
STAMP = "tiny_model.json"

DIT_CONFIG: dict[str, Any] = {
    "_class_name": "LongCatVideoTransformer3DModel",
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 64,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 32,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 32,
    "frequency_embedding_size": 256,
    "patch_size": (1, 2, 2),
    "enable_bsa": False,
    "bsa_params": {"sparsity": 0.9375, "chunk_3d_shape_q": (4, 4, 4), "chunk_3d_shape_k": (4, 4, 4)},
    "text_tokens_zero_pad": True,
}
SCHEDULER_CONFIG = {"shift": 12.0, "use_dynamic_shifting": False, "time_shift_type": "linear"}
UMT5_SIZES = {"d_model": DIT_CONFIG["caption_channels"], "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
VAE_BASE_DIM = 4
VOCAB_SIZE = 512

CORPUS = (
    "A golden retriever runs along a sandy beach at sunset, waves rolling in behind it.",
    "Close-up of a barista pouring milk into a cup of coffee, steam rising slowly in the morning light.",
    "The camera slowly pans across a snowy mountain range under a clear blue sky.",
    "A woman in a red dress walks through a crowded market and looks at the fruit stalls.",
    "Time-lapse of clouds moving over a city skyline, from day to night.",
    "An old man sits on a wooden bench in the park and feeds the pigeons.",
    "A drone shot of a river winding through a dense green forest in the fog.",
    "Two children play football in the rain on a muddy field, laughing and shouting.",
    "A red car drives down a wet street at night, neon lights reflecting on the road.",
    "A white cat jumps from the sofa to the window and watches the birds outside.",
    "A chef slices vegetables in a bright modern kitchen, then turns to the camera and smiles.",
    "The spaceship lands on a desert planet while dust rises around it; cinematic lighting, 4K.",
    "A small blue square moves from the left to the right on a black background.",
    "A large red circle moves from the top to the bottom on a white background.",
    "Bright tones, overexposed, static, blurred details, subtitles, worst quality, low quality, ugly, deformed.",
    "\u4e00\u53ea\u732b\u5728\u6d77\u6ee9\u4e0a\u5954\u8dd1\u3002",  # A cat runs on the beach.
    "\u955c\u5934\u7f13\u7f13\u626b\u8fc7\u96ea\u5c71\u3002",  # The camera slowly pans across snowy mountains.
)
PRINTABLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))
WHITE_SPACE = "\t\n\v\f\r\u0085\u00a0\u2028\u2029\u3000"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    parser.add_argument("--shards", type=int, default=1, help="number of files for the DiT (with an index if above 1)")
    options = parser.parse_args()
    dest = options.dest.resolve()
    try:
        use_comfyui()
        make(dest, options.seed, options.shards)
    except ValueError as error:
        parser.error(str(error))
    size = sum(path.stat().st_size for path in dest.rglob("*") if path.is_file())
    print(f"{dest}: tiny LongCat-Video model, {size / 1e6:.1f} MB")


def make(dest: Path, seed: int, shards: int) -> None:
    """Write the folder `dest`, or leave it if this script wrote it with the same arguments. ComfyUI must be importable.

    Raises:
        ValueError: `dest` holds something else.
    """
    stamp = {"seed": seed, "shards": shards, "script": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}
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


def use_comfyui() -> None:
    """Make ComfyUI and the pack importable. ComfyUI goes first, or the pack's `nodes` would hide ComfyUI's.

    Raises:
        ValueError: COMFYUI_PATH does not name a ComfyUI.
    """
    root = os.environ.get("COMFYUI_PATH", "")
    if not root or not (Path(root) / "comfy").is_dir():
        raise ValueError(f"COMFYUI_PATH is '{root}': set it to the folder of ComfyUI that main.py is in.")
    sys.path.insert(0, root)
    sys.path.append(str(PACK))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True


def write_model(folder: Path, seed: int, shards: int) -> None:
    """Write all components below `folder`."""
    import diffusers
    import torch
    import transformers

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


def build_dit(config: Mapping[str, Any]) -> Any:
    """The pack's own network at the sizes of a released-layout config; its weights are not set."""
    from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size

    names = inspect.signature(LongCatVideoTransformer).parameters.keys() & config.keys()
    ffn_size = ffn_hidden_size(config["hidden_size"], config["mlp_ratio"])
    return LongCatVideoTransformer(**{name: config[name] for name in names}, ffn_hidden_size=ffn_size)


def write_random_dit(folder: Path, shards: int, generator: "torch.Generator") -> None:
    """Write the pack's own network at the sizes of DIT_CONFIG with random weights."""
    weights = build_dit(DIT_CONFIG).state_dict()
    randomize(weights, generator)
    write_dit(folder, DIT_CONFIG, weights, shards)


def write_dit(folder: Path, config: Mapping[str, Any], weights: Mapping[str, "torch.Tensor"], shards: int = 1) -> None:
    """Write config and weights, as bf16, in the released layout."""
    import torch
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_torch_state_dict(halves, folder, filename_pattern=pattern, max_shard_size=shard_size(halves, shards))


def shard_size(weights: Mapping[str, "torch.Tensor"], shards: int) -> int:
    """Size limit in bytes with which huggingface_hub cuts `weights` into `shards` files.

    Raises:
        ValueError: no limit does.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    total = sum(tensor.nbytes for tensor in weights.values())
    for size in range(math.ceil(total / max(shards, 1)), total + 1, 1024):
        if len(split_torch_state_dict_into_shards(weights, max_shard_size=size).filename_to_tensors) == shards:
            return size
    raise ValueError(f"--shards is {shards}: {len(weights)} tensors cannot be cut into that many files; use 1 to 8.")


def randomize(weights: Mapping[str, "torch.Tensor"], generator: "torch.Generator") -> None:
    """Fill tensors in place so that signals keep their size and every tensor shows in the output.

    Gains are near 1, biases near 0, matrices and kernels have unit gain; none is constant, so that a swapped pair of
    tensors changes the output too.
    """
    import torch

    for name, tensor in weights.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith(".bias"):
            tensor.copy_(0.1 * noise)
        elif name.endswith(".gamma") or tensor.ndim == 1:
            tensor.copy_(1 + 0.1 * noise)
        else:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))


@contextlib.contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Work in a folder, and go back."""
    previous = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(previous)


def write_tokenizer(folder: Path, corpus: Iterable[str], vocab_size: int, words: Iterable[str] = ()) -> None:
    """Train a sentencepiece model on sentences; write it as such and as transformers' tokenizer.

    As in the released tokenizer there are byte pieces for characters outside the vocabulary, pad is 0 and eos 1.
    `vocab_size` is the most there can be; few sentences give fewer pieces. Each of `words` becomes one.
    """
    import sentencepiece
    import transformers

    folder.mkdir(parents=True)
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, working_directory(Path(scratch)):  # the model keeps the file's path
        rules = Path("white_space.tsv")
        rules.write_text("".join(f"{ord(char):X}\t20\n" for char in WHITE_SPACE), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            user_defined_symbols=[f"\u2581{word}" for word in words],
            required_chars=PRINTABLE_ASCII,
            normalization_rule_tsv=str(rules),
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    (folder / "spiece.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    transformers.T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(folder)


if __name__ == "__main__":
    main()
