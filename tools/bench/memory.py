"""Peak memory of a computation, measured in a process of its own. Linux only."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from host.imports import use_comfyui

PEAK_RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
# glibc keeps freed tensors for later ones, by rules that make its size a matter of chance. Returning what is 64 KB or
# larger at once makes the size of the process that of its living tensors.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def is_measurable() -> bool:
    """Whether this system tells the peak of a process."""
    return os.access(PEAK_RESET, os.W_OK)


def in_fresh_process(work: Callable[..., Any], *args: Any) -> Any:
    """What a function gives in a process of its own, in which ComfyUI and the pack are importable."""
    os.environ.update(ALLOCATOR)  # of the processes to come: this one has read it already
    with ProcessPoolExecutor(
        max_workers=1, mp_context=get_context("spawn"), initializer=use_comfyui, initargs=(True,)
    ) as pool:
        return pool.submit(work, *args).result()


def growth(call: Callable[[], Any]) -> int:
    """Bytes by which a call makes this process larger, at the most."""
    PEAK_RESET.write_text("5", encoding="ascii")
    idle = _status("VmRSS")
    call()
    return _status("VmHWM") - idle


def _status(name: str) -> int:
    """A size in bytes out of this process's status."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
    return int(fields[name].split()[0]) * 1024
