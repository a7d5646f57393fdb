"""Keys and values of the condition frames, computed once per sampling run.

Condition tokens attend only to each other, do not see the text and are always at timestep 0: what they contribute to
the network, their rotated keys and their values in every self-attention, is the same at every step, for every prompt
and in both branches of guidance. Computing it once is exact, not an approximation.

The first call of a run takes the condition frames through the network alone, in a batch of one, and keeps every
block's keys and values. Each call then runs the noise frames alone; self-attention prepends what was kept. The
velocity of condition frames is returned as 0, so CFG-zero* scales by the noise frames only, as the reference does with
its cache (without one it includes the condition frames).

Source: meituan-longcat/LongCat-Video, `_cache_clean_latents` and `forward_with_kv_cache`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..frames.geometry import LatentShape
from .call import NOTHING, Past
from .stores import CacheSize, DeviceStore, HostStore, Placement, Store

Record = Callable[[Tensor, Past], object]
"""Runs the network on condition frames `[1, 16, t, H, W]` alone, with a past that keeps what each block adds."""
MAX_COPIES = 4
"""Of the whole frames: those themselves, and areas of them that prompts are limited to. What is more than ComfyUI was
told to expect on the device lies in main memory."""


@dataclass(frozen=True)
class Recording:
    """Keeps what every block adds, while the condition frames run alone."""

    store: Store
    num_latents: int = 0

    def extend(self, block_index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The block's own, which are kept on the way."""
        self.store.write(block_index, torch.stack([k, v]))
        return k, v


@dataclass(frozen=True)
class Cached:
    """Puts what was kept of `num_latents` frames in front: each store's before an equal share of the batch."""

    stores: tuple[Store, ...]
    num_latents: int

    def extend(self, block_index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those that are kept, for every video of the batch, then the block's own."""
        share = k.shape[0] // len(self.stores)
        past = [store.read(block_index).expand(-1, share, -1, -1, -1) for store in self.stores]
        past_k, past_v = past[0] if len(past) == 1 else torch.cat(past, dim=1)
        return torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)


@dataclass(eq=False)
class Kept:
    """A store and the condition frames `[1, 16, t, H, W]` that it is of: none while it is being filled."""

    store: Store
    device: torch.device
    num_tokens: int
    step: int
    """Of the run, in which it was used last."""
    frames: Tensor | None = None

    def is_of(self, given: Tensor) -> bool:
        """Whether it holds exactly these condition frames."""
        return self.is_like(given) and self.frames is not None and torch.equal(self.frames, given)

    def is_like(self, given: Tensor) -> bool:
        """Whether it holds condition frames of the same size on the same device."""
        return self.frames is not None and (self.device, self.frames.shape) == (given.device, given.shape)


@dataclass(eq=False)
class KVCache:
    """The cache of one sampling run, which the network is called with.

    Devices that share the run (ComfyUI's multi-GPU guidance) have stores of their own, and so has every area of a frame
    that a prompt is limited to.
    """

    size: CacheSize
    placement: Placement
    stores: list[Kept] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
    step: int = 0
    """Counted by the noise level of the calls."""
    sigmas: Tensor | None = None

    def bytes_to_come(self, device: torch.device | None = None) -> int:
        """Memory that the cache will still take on a device (None: of a run that has not begun), for planning."""
        here = sum(kept.num_tokens for kept in self.stores if kept.device == device)
        if self.placement == "gpu":
            return max(0, self.size.num_tokens - here) * self.size.total_bytes // max(1, self.size.num_tokens)
        return 0 if here else self.size.device_bytes(self.placement)

    @torch.compiler.disable  # looks at data, and what it records is once per run: not worth a graph of its own
    def past(self, x: Tensor, num_cond_latents: int, record: Record, transformer_options: dict[str, Any]) -> Past:
        """The condition frames of a call as its past, or nothing where that is wrong: then the log says why, once.

        A call may have several prompts, one behind the other in its batch, and each its own area of the frames.

        Args:
            x: latent `[B, 16, T, H, W]` of the call.
            num_cond_latents: how many of its leading frames are given.
            record: runs the network on one video's condition frames.
            transformer_options: of the call.
        """
        self._count(transformer_options.get("sigmas"))
        given = x[:, :, :num_cond_latents].chunk(len(transformer_options.get("cond_or_uncond", ())) or 1)
        given = given[:1] if all(torch.equal(each, given[0]) for each in given) else given
        reason = why_not(given, transformer_options)
        stores = [] if reason else [self._store(each[:1], record) for each in given]
        found = tuple(store for store in stores if store is not None)
        if stores and len(found) == len(stores):
            return Cached(found, num_cond_latents)
        if num_cond_latents:
            self._say(f"LongCat KV Cache is not used: {reason or 'the areas of the prompts are too many'}.")
        return NOTHING

    def clear(self) -> None:
        """Give the memory back."""
        for kept in self.stores:
            kept.store.clear()
        self.stores.clear()

    def _count(self, sigmas: Tensor | None) -> None:
        if sigmas is None or self.sigmas is None or not torch.equal(sigmas, self.sigmas):
            self.step, self.sigmas = self.step + 1, sigmas

    def _store(self, given: Tensor, record: Record) -> Store | None:
        found = next((kept for kept in self.stores if kept.is_of(given)), None)
        if found is not None:
            found.step = self.step
            return found.store
        here = [kept for kept in self.stores if kept.device == given.device]
        alike = [kept for kept in here if kept.is_like(given)]
        if alike and all(kept.step < self.step for kept in alike):  # areas of one size are used in the same step
            self._say("LongCat KV Cache is rebuilt: the condition frames have changed.")
        num_tokens = LatentShape(*given.shape[2:]).grid().num_tokens
        taken = num_tokens + sum(kept.num_tokens for kept in here)
        if taken > MAX_COPIES * self.size.num_tokens:
            outdated = next((kept for kept in alike if kept.step < self.step - 1), None)
            if outdated is None:
                return None
            outdated.store.clear()
            self.stores.remove(outdated)
        is_planned = self.placement == "gpu" and taken <= self.size.num_tokens
        new = Kept(DeviceStore() if is_planned else HostStore(given.device), given.device, num_tokens, self.step)
        # Already here, so that a run that stops while it is being filled gives the memory back.
        self.stores.append(new)
        record(given, Recording(new.store))
        new.frames = given.clone()
        return new.store

    def _say(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.add(sentence)
            logging.info(sentence)


def why_not(given: Sequence[Tensor], transformer_options: dict[str, Any]) -> str | None:
    """Why a call cannot use the cache; None if it can.

    Args:
        given: the condition frames `[videos, 16, t, H, W]` of each of its prompts.
        transformer_options: of the call.
    """
    if not given[0].shape[2]:
        return "there are no condition frames"
    if "context_window" in transformer_options:
        return "context windows show the network other frames in every window"
    if transformer_options.get("patches_replace", {}).get("dit"):
        return "another node replaces blocks of the network"
    if not all(torch.equal(each, each[:1].expand_as(each)) for each in given):
        return "the videos of the batch begin with different frames"
    return None
