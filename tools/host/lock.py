"""A lock between processes."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from host.process import say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Windows locks byte ranges, and a locked byte cannot be read: this one is far behind the process id in the file.
LOCKED_BYTE = 1 << 30


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for it. The operating system frees it when this process ends, however it ends."""
    with path.open("a+", encoding="utf-8") as file:
        announced = False
        while not _try_lock(file.fileno()):
            if not announced:
                file.seek(0)
                say(f"Waiting for another run (pid {file.read().strip() or 'unknown'}) ...")
                announced = True
            time.sleep(0.5)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
