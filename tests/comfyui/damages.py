"""More than 200 ways in which a checkpoint can be damaged or of another model, each from a fixed seed."""

import json
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import safetensors.torch
import torch
from torch import Tensor

from longcat_core.weights import layouts

SEED = 20251122
StateDict = dict[str, Tensor]


class Damage(NamedTuple):
    """A kind, a number within the kind, and how a network's folder or single file comes to it."""

    kind: str
    number: int
    apply: Callable[[Path], Any]
    """Changes a folder that holds a config.json and one .safetensors file."""
    is_file: bool = True
    """Whether it changes nothing but the .safetensors file."""

    @property
    def name(self) -> str:
        """A name that can be a file's."""
        return f"{self.kind}-{self.number}".replace(" ", "-")


def weights_file(folder: Path) -> Path:
    """The only .safetensors file of a folder."""
    (file,) = folder.glob("*.safetensors")
    return file


def take_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header: Any, data: bytes) -> bytes:
    """A file of them, whether they fit or not."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def corpus() -> Iterator[Damage]:
    """All of them."""
    chance = random.Random(SEED)
    for kind, count, change in (*BYTES, *HEADERS, *TENSORS):
        for number in range(count):
            yield Damage(kind, number, _on_file(change, chance.randrange(1 << 32)))
    for kind, change in FOLDERS.items():
        yield Damage(kind, 0, change, is_file=False)


def _on_file(change: Callable[[bytes, random.Random], bytes], seed: int) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        file = weights_file(folder)
        file.write_bytes(change(file.read_bytes(), random.Random(seed)))

    return apply


# --- bytes


def _flip_in_header(content: bytes, chance: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    changed = bytearray(content)
    # Behind the metadata each byte means something, the padding apart.
    position = chance.randrange(content.index(b"data_offsets"), 8 + len(content[8 : 8 + length].rstrip()))
    changed[position] = chance.choice([byte for byte in b'{}[]",:0x\x00\xff' if byte != changed[position]])
    return bytes(changed)


BYTES: tuple[tuple[str, int, Callable[[bytes, random.Random], bytes]], ...] = (
    ("truncated in the data", 16, lambda c, r: c[: r.randrange(len(c) // 2, len(c))]),
    ("truncated in the header", 12, lambda c, r: c[: r.randrange(1, struct.unpack("<Q", c[:8])[0])]),
    ("empty", 1, lambda c, r: b""),
    ("surplus bytes", 6, lambda c, r: c + bytes(r.randrange(1, 9999))),
    (
        "header length",
        12,
        lambda c, r: struct.pack("<Q", r.choice([0, 1, len(c), 1 << 27, 1 << 40, (1 << 64) - 1])) + c[8:],
    ),
    ("header byte", 24, _flip_in_header),
    ("noise", 6, lambda c, r: r.randbytes(r.randrange(1, 5000))),
    ("web page", 1, lambda c, r: b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 40),
    ("pointer of git lfs", 1, lambda c, r: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 27162\n"),
    ("pickle", 1, lambda c, r: pickle.dumps({"blocks.0.attn.qkv.weight": [0.0] * 99})),
    ("zip", 1, lambda c, r: b"PK\x03\x04" + bytes(600)),
)

# --- header


def _header(change: Callable[[dict[str, Any], str, random.Random], Any]) -> Callable[[bytes, random.Random], bytes]:
    def apply(content: bytes, chance: random.Random) -> bytes:
        header, data = take_apart(content)
        name = chance.choice(sorted(name for name in header if name != "__metadata__"))
        change(header, name, chance)
        return put_together(header, data)

    return apply


def _shift(entry: dict[str, Any], begin: int, end: int) -> None:
    entry["data_offsets"] = [entry["data_offsets"][0] + begin, entry["data_offsets"][1] + end]


HEADERS: tuple[tuple[str, int, Callable[[bytes, random.Random], bytes]], ...] = (
    ("overlapping offsets", 8, _header(lambda h, n, r: _shift(h[n], -2 * r.randrange(1, 9), 0))),
    ("moved offsets", 8, _header(lambda h, n, r: _shift(h[n], 64, 64))),
    ("offsets behind the end", 4, _header(lambda h, n, r: _shift(h[n], 1 << 40, 1 << 40))),
    ("offsets backwards", 4, _header(lambda h, n, r: h[n].update(data_offsets=h[n]["data_offsets"][::-1]))),
    ("negative offsets", 4, _header(lambda h, n, r: h[n].update(data_offsets=[-8, 8]))),
    ("two tensors in one place", 6, _header(lambda h, n, r: h.update({n + "2": h[n]}))),
    ("unknown dtype", 4, _header(lambda h, n, r: h[n].update(dtype=r.choice(["F12", "", "float32", "BF17"])))),
    ("dtype of another size", 6, _header(lambda h, n, r: h[n].update(dtype=r.choice(["F32", "I8", "F64"])))),
    ("integers for floats", 6, _header(lambda h, n, r: h[n].update(dtype=r.choice(["I16", "U16"])))),
    ("shape of another size", 6, _header(lambda h, n, r: h[n].update(shape=[*h[n]["shape"], 3]))),
    ("negative shape", 4, _header(lambda h, n, r: h[n].update(shape=[-1, *h[n]["shape"][1:]]))),
    ("shape of words", 3, _header(lambda h, n, r: h[n].update(shape=["many"]))),
    ("huge shape", 4, _header(lambda h, n, r: h[n].update(shape=[1 << 62, 1 << 62]))),
    ("entry without offsets", 3, _header(lambda h, n, r: h[n].pop("data_offsets"))),
    ("list for a header", 1, lambda c, r: put_together([1, 2], take_apart(c)[1])),
    ("no tensors", 1, lambda c, r: put_together({}, b"")),
    ("numbers for metadata", 1, _header(lambda h, n, r: h.update(__metadata__={"format": 3}))),
)

# --- tensors


def _tensors(change: Callable[[StateDict, random.Random], Any]) -> Callable[[bytes, random.Random], bytes]:
    def apply(content: bytes, chance: random.Random) -> bytes:
        weights = safetensors.torch.load(content)
        changed = change(weights, chance)
        whole = weights if changed is None else changed
        return safetensors.torch.save({name: tensor.contiguous() for name, tensor in whole.items()})

    return apply


def _any(weights: StateDict, chance: random.Random, dimensions: int = 1) -> str:
    return chance.choice(sorted(name for name, tensor in weights.items() if tensor.ndim >= dimensions))


def _poison(weights: StateDict, chance: random.Random) -> None:
    tensor = weights[_any(weights, chance)]
    tensor.view(-1)[chance.randrange(tensor.numel())] = chance.choice([float("nan"), float("inf"), -float("inf")])


def _rename(weights: StateDict, chance: random.Random) -> None:
    name = _any(weights, chance)
    weights[name.replace("weight", "wieght").replace("bias", "bais")] = weights.pop(name)


def _cut(weights: StateDict, chance: random.Random) -> None:
    name = _any(weights, chance)
    weights[name] = weights[name][: chance.randrange(weights[name].shape[0])]


def _drop(weights: StateDict, chance: random.Random) -> None:
    for name in chance.sample(sorted(weights), chance.randrange(1, 5)):
        del weights[name]


def _turn(weights: StateDict, chance: random.Random) -> None:
    names = [name for name, t in weights.items() if t.ndim == 2 and t.shape[0] != t.shape[1]]
    name = chance.choice(sorted(names))
    weights[name] = weights[name].t()


def _other(*names: str, shape: tuple[int, ...] = (8, 8)) -> Callable[[StateDict, random.Random], StateDict]:
    return lambda weights, chance: {name: torch.ones(shape) for name in names}


def _mlx(weights: StateDict, chance: random.Random) -> None:
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].movedim(1, -1)


def _unscaled(weights: StateDict, chance: random.Random) -> StateDict:
    quantised = checkpoints.comfy_quantised(weights, chance.choice(["float8_e4m3fn", "int8_tensorwise"]))
    del quantised[chance.choice(sorted(name for name in quantised if name.endswith("weight_scale")))]
    return quantised


AVATAR = {"audio_proj.proj1.weight": torch.ones(2), "blocks.0.audio_cross_attn.q_linear.weight": torch.ones(2)}
TENSORS: tuple[tuple[str, int, Callable[[bytes, random.Random], bytes]], ...] = (
    ("not finite", 12, _tensors(_poison)),
    ("missing tensors", 12, _tensors(_drop)),
    ("surplus tensor", 4, _tensors(lambda w, r: w.update({f"blocks.{r.randrange(2)}.extra.weight": torch.ones(2)}))),
    ("renamed tensor", 8, _tensors(_rename)),
    ("cut tensor", 8, _tensors(_cut)),
    ("transposed tensor", 6, _tensors(_turn)),
    ("further dimension", 4, _tensors(lambda w, r: w.update({(n := _any(w, r)): w[n].unsqueeze(0)}))),
    ("integers", 4, _tensors(lambda w, r: w.update({(n := _any(w, r)): w[n].int()}))),
    ("truth values", 2, _tensors(lambda w, r: w.update({(n := _any(w, r)): w[n] > 0}))),
    ("complex numbers", 2, _tensors(lambda w, r: w.update({(n := _any(w, r)): w[n].to(torch.complex64)}))),
    ("bytes", 2, _tensors(lambda w, r: w.update({(n := _any(w, r)): w[n].view(torch.uint8)}))),
    ("lost scale", 4, _tensors(_unscaled)),
    ("avatar", 1, _tensors(lambda w, r: w | AVATAR)),
    ("avatar split", 1, _tensors(lambda w, r: checkpoints.named(w, layouts.WAN) | AVATAR)),
    ("mlx", 1, _tensors(_mlx)),
    ("text encoder", 1, _tensors(_other("shared.weight", "encoder.final_layer_norm.weight"))),
    ("vae", 1, _tensors(_other("encoder.conv1.weight", "decoder.conv1.weight"))),
    ("lora", 1, _tensors(_other("lora___lorahyphen___blocks___lorahyphen___0___lorahyphen___ffn.lora_up.weight"))),
    ("one tensor", 1, _tensors(_other("weight"))),
)

# --- folders


def _index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _outside(folder: Path, path: str) -> None:
    """An index that leads to a healthy file outside of the folder."""
    weights_file(folder).rename(folder.parent.parent / "outside.safetensors")
    (folder / "other.safetensors").write_bytes((folder.parent.parent / "outside.safetensors").read_bytes()[:99])
    _index(folder, {"x_embedder.proj.weight": path.format(outside=folder.parent.parent / "outside.safetensors")})


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "no weights": lambda f: weights_file(f).unlink(),
    "no config": lambda f: (f / "config.json").unlink(),
    "config of nothing": lambda f: (f / "config.json").write_bytes(b""),
    "config of words": lambda f: (f / "config.json").write_text("hidden_size: 4096"),
    "config of bytes": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "config of another model": lambda f: (f / "config.json").write_text('{"hidden_size": 4096, "depth": 48}'),
    "index of a missing shard": lambda f: _index(
        f, {"a": weights_file(f).name, "b": "model-00002-of-00002.safetensors"}
    ),
    "index outside, upwards": lambda f: _outside(f, "../../outside.safetensors"),
    "index outside, absolute": lambda f: _outside(f, "{outside}"),
    "index of a device": lambda f: _index(f, {"a": "/dev/zero"}),
    "index of a folder": lambda f: _index(f, {"a": "."}),
    "index of numbers": lambda f: _index(f, {"a": 1}),
    "index of a list": lambda f: _index(f, ["a"]),
    "index of nothing": lambda f: (f / "model.safetensors.index.json").write_bytes(b""),
    "index of bytes": lambda f: (f / "model.safetensors.index.json").write_bytes(b"\x80\x81"),
    "two files without an index": lambda f: (f / "second.safetensors").write_bytes(weights_file(f).read_bytes()),
    "a folder for a file": lambda f: (weights_file(f).unlink(), (f / "model.safetensors").mkdir()),
}
