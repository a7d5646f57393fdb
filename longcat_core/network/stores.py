"""Where keys and values of the condition frames are kept between calls: on the computing device, or in main memory."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import comfy.model_management
import torch
from torch import Tensor

Placement = Literal["gpu", "cpu"]
BLOCKS_IN_FLIGHT = 2


@dataclass(frozen=True)
class CacheSize:
    """Bytes of the keys and values of a number of condition tokens."""

    num_tokens: int
    hidden_size: int
    depth: int
    itemsize: int

    @property
    def block_bytes(self) -> int:
        """Of one block."""
        return 2 * self.num_tokens * self.hidden_size * self.itemsize

    @property
    def total_bytes(self) -> int:
        """Of all blocks."""
        return self.depth * self.block_bytes

    def device_bytes(self, placement: Placement) -> int:
        """What lies on the computing device at once."""
        return self.total_bytes if placement == "gpu" else min(BLOCKS_IN_FLIGHT, self.depth) * self.block_bytes


class Store(Protocol):
    """Where keys and values `[2, 1, tokens, heads, head_dim]` of every block are kept."""

    def write(self, block_index: int, kv: Tensor) -> None:
        """Keep one block's."""

    def read(self, block_index: int) -> Tensor:
        """One block's, on the computing device."""

    def clear(self) -> None:
        """Give the memory back."""


class DeviceStore:
    """Keeps everything on the device that computed it."""

    def __init__(self) -> None:
        self.blocks: dict[int, Tensor] = {}

    def write(self, block_index: int, kv: Tensor) -> None:
        """Keep one block's."""
        self.blocks[block_index] = kv

    def read(self, block_index: int) -> Tensor:
        """One block's."""
        return self.blocks[block_index]

    def clear(self) -> None:
        """Give the memory back."""
        self.blocks.clear()


class HostStore:
    """Keeps everything in pinned host memory; while one block computes, the next one's part is on its way."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = copy_stream(device)
        self.blocks: dict[int, Tensor] = {}
        self.arriving: dict[int, tuple[Tensor, Any]] = {}

    def write(self, block_index: int, kv: Tensor) -> None:
        """Keep one block's; pinning is ComfyUI's and within its limit."""
        host = torch.empty(kv.shape, dtype=kv.dtype)
        comfy.model_management.pin_memory(host)
        self.blocks[block_index] = host.copy_(kv)
        if block_index == 0:
            self._send(0)

    def read(self, block_index: int) -> Tensor:
        """One block's, on the computing device; starts to copy the following one's, after the last the first's."""
        if block_index not in self.arriving:
            self._send(block_index)
        kv, stream = self.arriving.pop(block_index)
        comfy.model_management.sync_stream(self.device, stream)
        self._send((block_index + 1) % len(self.blocks))
        return kv

    def clear(self) -> None:
        """Give the memory back."""
        if self.blocks and comfy.model_management.is_device_cuda(self.device):
            torch.cuda.synchronize(self.device)  # a copy may still be reading what is unpinned here
        self.arriving.clear()
        for host in self.blocks.values():
            comfy.model_management.unpin_memory(host)
        self.blocks.clear()

    def _send(self, block_index: int) -> None:
        host = self.blocks[block_index]
        # Memory of the computing stream, for which the copy waits: what it held before may still be in use there.
        kv = torch.empty_like(host, device=self.device)
        stream = None if torch.compiler.is_compiling() else self.stream
        if stream is None:
            kv.copy_(host, non_blocking=True)
        else:
            stream.wait_stream(comfy.model_management.current_stream(self.device))
            with torch.cuda.stream(stream):
                kv.copy_(host, non_blocking=True)
        self.arriving[block_index] = kv, stream


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies to a CUDA device; None elsewhere, where they are made in the order of everything else.

    Not one of ComfyUI's: it hands them out in turn to the weights of each block, and one that waits for this block's
    work would keep the weights of the next from travelling ahead.
    """
    return torch.cuda.Stream(device=device) if comfy.model_management.is_device_cuda(device) else None
