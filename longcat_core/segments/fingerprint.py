"""Fingerprints of what segments are made from: a finished segment is used again where they are equal.

What is connected counts by its contents where they are at hand: frames, conditioning, the values of inputs. A MODEL,
CLIP or VAE counts by the nodes that made it (their kinds, their inputs, and what they say of themselves when ComfyUI
asks whether they have changed), by the files that those inputs name, and by the weights in memory (contents.py). The
name and place of a file do not count where it is known to be one; nor do ids of nodes, inputs at their default, and
nodes and inputs that decide where or how something is computed.

Two things are beyond it: a node that gives something else without telling ComfyUI, unless that is weights, and other
rounding by another version of PyTorch or another device, which is what "where or how" means.
"""

import functools
import hashlib
import json
import logging
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from comfy_execution.graph_utils import is_link
from torch import Tensor

FILE_VERSION = 2  # raise when the same inputs give other segments than before


class Same(NamedTuple):
    """What of a node does not change the result."""

    inputs: frozenset[str] = frozenset()
    """Inputs that do not count."""
    passes: str | None = None
    """The input that the output is equal to: the node itself does not count."""


SAME_RESULT = {
    # The cache's presence counts: with it CFG-zero* scales by the generated frames only. Where it lies does not.
    "LongCatKVCache": Same(frozenset({"policy"})),
    # Both backends attend to the same chunks.
    "LongCatBlockSparseAttention": Same(frozenset({"backend"})),
    # The same operations, compiled.
    "TorchCompileModel": Same(passes="model"),
    # The two halves of guidance, or the conditionings, on several cards.
    "MultiGPU_WorkUnits": Same(passes="model"),
    # The same weights on another device.
    "SelectModelDevice": Same(passes="model"),
    "SelectCLIPDevice": Same(passes="clip"),
    "SelectVAEDevice": Same(passes="vae"),
    "CLIPLoader": Same(frozenset({"device"})),
    "DualCLIPLoader": Same(frozenset({"device"})),
    # The value that is written in the node, as if it were written in the input it goes to.
    "PrimitiveString": Same(passes="value"),
    "PrimitiveStringMultiline": Same(passes="value"),
    "PrimitiveInt": Same(passes="value"),
    "PrimitiveFloat": Same(passes="value"),
    "PrimitiveBoolean": Same(passes="value"),
}


class Graph(Protocol):
    """The prompt that runs, and what its nodes and their inputs are."""

    def node(self, node_id: str) -> Mapping[str, Any]:
        """A node with `class_type` and `inputs`; raises as ComfyUI does where there is none."""

    def defaults(self, class_type: str) -> Mapping[str, Any]:
        """What inputs that are left out are."""

    def file(self, class_type: str, name: str, value: str) -> Any:
        """JSON values for the content of the file or folder that the value of an input names; None where none."""

    def changed(self, node_id: str) -> Any:
        """What the node answers when ComfyUI asks whether it has changed; not a number where it always has."""


def digest(*values: Any) -> str:
    """A fingerprint of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def frames_digest(frames: Tensor | None) -> str | None:
    """A fingerprint of frames."""
    if frames is None:
        return None
    found = hashlib.sha256(str(tuple(frames.shape)).encode())
    found.update(frames.float().cpu().contiguous().numpy())
    return found.hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """A fingerprint of any tensor, of its kind of numbers too."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def never_the_same(value: object) -> str:
    """What stands for something that cannot be compared: equal to nothing, itself at another time included."""
    return uuid.uuid4().hex


def always_changed(kind: str, value: object) -> str:
    """`never_the_same`, which is said: segments that depend on such a node are never used again."""
    logging.info("All segments are made anew: what node %s does cannot be compared with the last time.", kind)
    return never_the_same(value)


def plain(value: Any, unknown: Callable[[object], str] = never_the_same) -> Any:
    """A value as JSON values that are equal where it is.

    Args:
        value: anything that an input may have; 2 and 2.0 are the same.
        unknown: gives what stands for an object that cannot be compared, and for "not a number".
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and not math.isnan(value):
        return int(value) if value.is_integer() else value
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, list | tuple):
        return [plain(part, unknown) for part in value]
    if isinstance(value, Mapping):
        return {str(name): plain(part, unknown) for name, part in value.items()}
    return unknown(value)


def graph_digest(graph: Graph, value: Any) -> str:
    """A fingerprint of the value of an input: of the node that it links to, and of everything that is made from."""
    known: dict[str, str] = {}

    def followed(value: Any) -> Any:
        """Past nodes that do not count; they may end in a value."""
        while is_link(value):
            node = graph.node(value[0])
            passes = SAME_RESULT.get(node["class_type"], Same()).passes
            if passes not in node["inputs"]:
                break
            value = node["inputs"][passes]
        return value

    def content_of(value: Any, kind: str, name: str) -> Any:
        if isinstance(value, list):
            return [content_of(part, kind, name) for part in value]
        if isinstance(value, Mapping):
            return {str(key): content_of(part, kind, name) for key, part in value.items()}
        content = graph.file(kind, name, value) if isinstance(value, str) else None
        return (
            ["value", plain(value, functools.partial(always_changed, kind))] if content is None else ["file", content]
        )

    def digest_of(value: Any, kind: str, name: str) -> Any:
        value = followed(value)
        return ["link", node_digest(value[0]), plain(value[1])] if is_link(value) else content_of(value, kind, name)

    def node_digest(node_id: str) -> str:
        if node_id not in known:
            node = graph.node(node_id)
            kind = node["class_type"]
            inputs = {
                name: digest_of(value, kind, name)
                for name, value in {**graph.defaults(kind), **node["inputs"]}.items()
                if name not in SAME_RESULT.get(kind, Same()).inputs
            }
            known[node_id] = digest(
                kind, inputs, plain(graph.changed(node_id), functools.partial(always_changed, kind))
            )
        return known[node_id]

    return digest(digest_of(value, "", ""))


def conditioning_digest(conditioning: list, graph: Graph, value: Any) -> str:
    """A fingerprint of a CONDITIONING by its tensors and options.

    Options that are objects (hooks, control nets) cannot be compared: then the nodes that made it count as well.

    Args:
        conditioning: what came in.
        graph: the prompt that runs.
        value: what the input holds in it: a link.
    """
    objects: list[str] = []

    def unknown(option: object) -> str:
        objects.append(type(option).__name__)
        return objects[-1]

    contents = plain(conditioning, unknown)
    return digest(contents, graph_digest(graph, value) if objects else None)
