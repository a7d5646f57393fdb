"""The processes in which the toy model is trained: what they are told, what runs side by side, and how they end.

Needs the standard library only.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from host.process import HostError, host_environment, run_in_host, this_host

PREPARE, EXPORT = "prepare", "export"
PARTS = (("encoder", "decoder"), ("dit",))  # what trains one after the other, in processes side by side
# Two processes of one thread do more than one of two; glibc keeps freed memory instead of returning it.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "300000000",
}


def train_all(command: Sequence[str | Path], work: Path) -> int:
    """Prepare, train all parts, and write the model; return the exit status.

    Args:
        command: arguments of this Python that make a process do the parts whose names follow.
        work: the folder of the checkpoints and logs.

    Raises:
        HostError: a process failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(ENVIRONMENT)
    if run_in_host(this_host(), [*command, PREPARE]):
        raise HostError("Preparing the training failed; the reason is above.")
    _train_side_by_side([[sys.executable, *command, *parts] for parts in PARTS])
    return run_in_host(this_host(), [*command, EXPORT])


def _train_side_by_side(commands: Sequence[Sequence[str | Path]]) -> None:
    running = [subprocess.Popen(command, env=host_environment()) for command in commands]
    try:
        while None in (statuses := [process.poll() for process in running]) and not any(statuses):
            time.sleep(1)
    finally:
        for process in running:
            process.terminate()
            process.wait()
    if any(statuses):
        raise HostError("The training stopped; the reason is above. The same command continues it.")
