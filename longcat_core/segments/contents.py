"""Which weights a model has: fingerprints of files, and of what lies in memory.

Both are needed. A file says exactly which weights and LoRAs were asked for, whatever they are cast to and wherever they
lie. But a loader that was cached before its file was replaced still gives the old weights: what its file held when the
model was first met stands as long as that model lives. And a loader of another pack may find its file in ways that no
input tells. Memory says what is there, but matrices in it may be quantised, merged with LoRAs or on any device. So of
memory only what every way of loading keeps is looked at: vectors (biases, norms), and the LoRAs that wait beside the
weights, to be merged or bypassed.

Neither reads all of 27 GB: of what is large a sample is taken, so a change of a few numbers in gigabytes may be missed.
"""

import functools
import hashlib
import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WHOLE = 16 * 2**20  # bytes of a file that is read whole
HEAD = 4 * 2**20  # bytes: headers of safetensors and GGUF files are shorter
BLOCK, NUM_BLOCKS = 4096, 512  # bytes of a sample of the rest, and how many
NUM_VALUES = 4096  # of a tensor in memory


def files_digest(files: Iterable[Path], below: Path) -> list[tuple[str, str]]:
    """Names in a folder and contents of files, as JSON values."""
    return sorted((path.relative_to(below).as_posix(), file_digest(path)) for path in files)


def file_digest(path: Path) -> str:
    """A fingerprint of what is in a file, independent of its name, place and times.

    It is remembered as long as the file stays untouched.

    Raises:
        OSError: the file cannot be read.
    """
    found = path.stat()
    return _file_digest(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@functools.lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, *untouched: int) -> str:
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            found.update(file.read())
        else:
            found.update(file.read(HEAD))
            for index in range(NUM_BLOCKS):
                file.seek(HEAD + (size - BLOCK - HEAD) * index // (NUM_BLOCKS - 1), os.SEEK_SET)
                found.update(file.read(BLOCK))
    return found.hexdigest()


def memory_digest(source: Any) -> str:
    """A fingerprint of the weights that a MODEL, CLIP or VAE has in memory, as far as they are always readable.

    The same before and after it was moved, partly loaded or merged with its LoRAs, in this process and in another.
    """
    patcher, model = getattr(source, "patcher", source), model_of(source)
    found = hashlib.sha256(type(model).__name__.encode())
    if isinstance(model, torch.nn.Module):
        unmerged = getattr(patcher, "backup", {})
        for name, weight in sorted(model.named_parameters()):
            if weight.numel() == max(weight.shape, default=1):
                found.update(name.encode())
                found.update(sample(unmerged[name].weight if name in unmerged else weight))
    for name, patches in sorted(getattr(patcher, "patches", {}).items(), key=lambda of_key: str(of_key[0])):
        found.update(str(name).encode())
        for tensor in tensors_of(patches):
            found.update(sample(tensor))
    adapters = ((name, b"".join(map(sample, tensors_of(adapter)))) for name, adapter in bypassed_adapters(patcher))
    for name, numbers in sorted(adapters):  # in one order, whichever of several is found first
        found.update(name.encode())
        found.update(numbers)
    return found.hexdigest()


def model_of(source: Any) -> Any:
    """The model of a MODEL, CLIP or VAE, which lives as long as what a loader gave is used; None if there is none."""
    return getattr(getattr(source, "patcher", source), "model", None)


def bypassed_adapters(patcher: Any) -> Iterator[tuple[str, Any]]:
    """Layers and adapters of the bypassed LoRAs of a patcher and of those that it was cloned from.

    Core holds them in no more than the functions that put them in.
    """
    seen: set[int] = set()
    while patcher is not None:
        injections = [part for parts in getattr(patcher, "injections", {}).values() for part in parts]
        for part in [part for each in injections for part in getattr(each, "parts", [each])]:
            managers = inspect.getclosurevars(part.inject).nonlocals.values() if inspect.isfunction(part.inject) else ()
            for manager in managers:
                if id(manager) not in seen and hasattr(manager, "adapters"):
                    seen.add(id(manager))
                    yield from ((name, adapter) for name, (adapter, _) in sorted(manager.adapters.items()))
        patcher = getattr(patcher, "parent", None)


def sample(tensor: Tensor) -> bytes:
    """Some values of a tensor, evenly spread; only the shape of one that is not plainly in memory.

    They are rounded to bf16, which a loader may have done or not.
    """
    shape = str(tuple(tensor.shape)).encode()
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta:
        return shape
    flat = tensor.detach().reshape(-1)
    values = flat[:: max(1, flat.numel() // NUM_VALUES)]
    return shape + values.to(torch.bfloat16).cpu().float().numpy().tobytes()


def tensors_of(patch: Any) -> Iterator[Tensor]:
    """The tensors of a patch as `ModelPatcher.patches` holds it: in tuples, lists and adapters."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, list | tuple):
        for part in patch:
            yield from tensors_of(part)
    elif hasattr(patch, "weights"):
        yield from tensors_of(patch.weights)
