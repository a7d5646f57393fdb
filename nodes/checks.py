"""What the nodes check before a prompt runs."""

import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..longcat_core.frames.geometry import LATENT_CHANNELS
from ..longcat_core.frames.latents import is_waiting


def check_inputs(node: type[io.ComfyNode], check: Callable[..., object], **values: Any) -> bool | str:
    """The answer of a node's `validate_inputs`: True, or the sentence to show.

    Core leaves the ranges of the inputs that a node validates to the node, passes None for linked ones (whose values
    are known only when the node runs), and has already reported a value that is no number where one is needed.

    Args:
        node: the node; its schema has the ranges.
        check: called with the values that are known; raises ValueError with a sentence.
        values: inputs by name.
    """
    known = {}
    for declared in node.define_schema().inputs:
        value = values.get(declared.id)
        is_number = isinstance(declared, io.Int.Input | io.Float.Input)
        if value is None or (is_number and not isinstance(value, int | float)):
            continue
        if is_number and not declared.min <= value <= declared.max:
            return f"{declared.id} is {value}; it must be from {declared.min} to {declared.max}."
        known[declared.id] = value
    try:
        check(**known)
    except ValueError as error:
        return str(error)
    return True


def check_when_run(node: type[io.ComfyNode], check: Callable[..., object], **values: Any) -> None:
    """Check inputs when the node runs: only then are the values of linked ones known.

    Args:
        node: the node; its schema has the ranges of all values.
        check: called with those of the values that it has parameters for.
        values: inputs by name.

    Raises:
        ValueError: with the sentence to show.
    """
    parameters = inspect.signature(check).parameters

    def check_what_it_knows(**known: Any) -> None:
        check(**{name: value for name, value in known.items() if name in parameters})

    answer = check_inputs(node, check_what_it_knows, **values)
    if answer is not True:
        raise ValueError(answer)


def check_latent(samples: Tensor) -> None:
    """Refuse what no sampler made.

    Raises:
        ValueError: the shape is not a video latent's, or its last frame still waits for noise.
    """
    shape = tuple(samples.shape)
    if len(shape) != 5 or shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"The latent has shape {shape}; a LongCat-Video latent is [batch, {LATENT_CHANNELS}, frames, height, "
            f"width]. Connect the output of a sampler that started from LongCat Latent."
        )
    if is_waiting(samples):
        raise ValueError(
            "The latent is empty: nothing was sampled. Connect the output of the sampler; if it is connected, its "
            "sigmas were empty: check steps, denoise and nodes that split sigmas."
        )


def rgb(frames: Tensor) -> Tensor:
    """Frames `[F, H, W, C]` without what stands behind their three colors; grey ones (C = 1) get three."""
    return frames.expand(-1, -1, -1, 3) if frames.shape[-1] == 1 else frames[..., :3]
