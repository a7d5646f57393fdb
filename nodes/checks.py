"""What the nodes check: before a prompt runs, and again when it runs, when the values of linked inputs are known."""

import functools
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, signature
from typing import Any, TypeVar

from comfy_api.latest import io

from ..longcat_core.frames.geometry import LATENT_CHANNELS
from ..longcat_core.frames.shown import check_says_what_is_shown
from ..longcat_core.frames.waiting import is_waiting

Check = Callable[..., object]
Node = TypeVar("Node", bound=type[io.ComfyNode])


def checked(*checks: Check, ranges: Sequence[str] = ()) -> Callable[[Node], Node]:
    """Let a node class check its inputs.

    Core asks `validate_inputs` about the inputs that its signature names, and leaves their ranges to it; a mistake is
    shown once for each of them. So the signature is made of the inputs that are checked, and of no others.

    Args:
        checks: each raises ValueError with the sentence to show. Its parameters are inputs by their names; a default
            stands for an input that is not known yet, and without one the check waits until it is.
        ranges: more inputs whose ranges are checked here; those of all others before a prompt runs by core.
    """

    def decorate(node: Node) -> Node:
        parameters = (name for check in checks for name in signature(check).parameters)
        names = tuple(dict.fromkeys([*ranges, *parameters]))
        if names:
            node.validate_inputs = classmethod(_validation(checks, names))  # type: ignore[assignment]
        node.execute = classmethod(_checked_when_run(checks, node.execute.__func__))  # type: ignore[assignment, attr-defined]
        return node

    return decorate


def _validation(checks: Sequence[Check], names: Sequence[str]) -> Callable[..., bool | str]:
    known = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in names]
    declared = Signature([Parameter("cls", Parameter.POSITIONAL_ONLY), *known])

    def validate_inputs(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> bool | str:
        return problem(cls, checks, declared.bind(cls, *args, **kwargs).arguments) or True

    validate_inputs.__signature__ = declared  # type: ignore[attr-defined] # what core looks at
    return validate_inputs


def _checked_when_run(checks: Sequence[Check], run: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    declared = signature(run)

    @functools.wraps(run)
    def execute(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        given = declared.bind(cls, *args, **kwargs)
        given.apply_defaults()
        sentence = problem(cls, checks, {**given.arguments, **given.kwargs})
        if sentence is not None:
            raise ValueError(sentence)
        return run(cls, *args, **kwargs)

    return execute


def problem(node: type[io.ComfyNode], checks: Sequence[Check], values: Mapping[str, Any]) -> str | None:
    """The sentence about the first input that is wrong, or None.

    Args:
        node: its schema has the ranges.
        checks: as `checked`.
        values: inputs by name; None for those that are not known. Core has already reported a value that is no number
            where one is needed.
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
        for check in checks:
            parameters = signature(check).parameters.values()
            if all(parameter.name in known or parameter.default is not parameter.empty for parameter in parameters):
                check(**{parameter.name: known[parameter.name] for parameter in parameters if parameter.name in known})
    except ValueError as error:
        return str(error)
    return None


def check_latent(latent: dict[str, Any], title: str) -> None:
    """Refuse a LATENT that is no finished video.

    Args:
        latent: what a node was given.
        title: of the node.

    Raises:
        ValueError: the shape is not a video latent's, its last frame still waits for noise, or it may have padding and
            does not say where.
    """
    shape = tuple(latent["samples"].shape)
    if len(shape) != 5 or shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"The latent has shape {shape}; a LongCat-Video latent is [batch, {LATENT_CHANNELS}, frames, height, "
            f"width]. Connect the output of a sampler that started from LongCat Latent."
        )
    if is_waiting(latent["samples"]):
        raise ValueError(
            "The latent is empty: nothing was sampled. Connect the output of the sampler; if it is connected, its "
            "sigmas were empty: check steps, denoise and nodes that split sigmas."
        )
    check_says_what_is_shown(latent, title)
