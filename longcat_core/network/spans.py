"""Stages of the network on a few latent frames at a time, so that what they compute in between stays small.

Most of a block treats every token on its own: the modulation in fp32, the feed-forward network nearly three times as
wide as the tokens, the projections of attention. Above `MAX_SPAN_TOKENS` these run span by span; the result is the
same, and of the intermediates of a stage there is never more than one span's.
"""

from collections.abc import Callable
from typing import Any, overload

from torch import Tensor

from ..frames.geometry import ceil_div

MAX_SPAN_TOKENS = 16384
# Of all tokens at once: the tokens, modulated ones, queries, keys, values, what they attended to, and three for kernels
# that make copies. Of the tokens of a span: what the projections, norms and rotations make in between.
RESIDENT_COPIES = 9
PASSING_COPIES = 8
CACHED_COPIES = 2  # keys and values behind those of a cache


@overload
def by_spans(stage: Callable[..., Tensor], *inputs: Tensor) -> Tensor: ...
@overload
def by_spans(stage: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]: ...
def by_spans(stage: Callable[..., Any], *inputs: Tensor) -> Any:
    """`stage(*inputs)`, span by span along the frames if there are many tokens.

    Args:
        stage: treats every token, or every token and the modulation of its frame, on its own; returns one or several
            tensors with the tokens along dimension 1.
        inputs: along dimension 1 tokens or latent frames, each frame having the same number of tokens.
    """
    units, step = min(x.shape[1] for x in inputs), span_units(inputs)
    if step >= units:
        return stage(*inputs)
    whole: list[Tensor] = []
    for start in range(0, units, step):
        result = stage(*(span_of(x, start, start + step, units) for x in inputs))
        parts = (result,) if isinstance(result, Tensor) else result
        if not whole:
            num_tokens = max(x.shape[1] for x in inputs)
            whole = [part.new_empty(part.shape[0], num_tokens, *part.shape[2:]) for part in parts]
        for out, part in zip(whole, parts, strict=True):
            out.narrow(1, start * out.shape[1] // units, part.shape[1]).copy_(part)
    return whole[0] if isinstance(result, Tensor) else tuple(whole)


def span_of(x: Tensor, start: int, end: int, units: int) -> Tensor:
    """The part of dimension 1 from frame `start` to frame `end` of `units`, contiguous as the whole is."""
    return x[:, start * x.shape[1] // units : end * x.shape[1] // units].contiguous()


def span_units(inputs: tuple[Tensor, ...]) -> int:
    """Frames (tokens, if all inputs are tokens) of one span: spans are of about the same size, none above the limit."""
    tokens = max(x.shape[0] for x in inputs) * max(x.shape[1] for x in inputs)
    num_spans = ceil_div(tokens, MAX_SPAN_TOKENS)
    return ceil_div(min(x.shape[1] for x in inputs), num_spans)


def activation_bytes(num_tokens: int, hidden_size: int, itemsize: int, has_cache: bool = False) -> int:
    """Bytes that a call of the network needs besides its weights, at the most, with an attention that keeps no scores.

    Args:
        num_tokens: of all videos of the batch.
        hidden_size: of the network.
        itemsize: bytes per value of the compute dtype.
        has_cache: whether condition frames are cached.
    """
    resident = RESIDENT_COPIES + (CACHED_COPIES if has_cache else 0)
    copies = resident * num_tokens + PASSING_COPIES * min(num_tokens, MAX_SPAN_TOKENS)
    return copies * hidden_size * itemsize
