"""Run a headless ComfyUI server with the pack in it."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from host.client import LOG_NAME, Client, ServerError, log_tail, log_text
from host.process import Host, host_environment
from host.setup import STAMP

PACK_FOLDER = "longcat-video"
START_TIMEOUT = 180.0  # seconds; a busy machine needs 30
STOP_TIMEOUT = 4.0  # seconds until a server that was asked to stop is killed; an idle one takes 2.5


@contextmanager
def running_server(
    host: Host,
    base_directory: Path,
    pack: Path,
    extra_args: Sequence[str] = (),
    cpu: bool | None = None,
    port: int | None = None,
) -> Iterator[Client]:
    """Run ComfyUI with ``pack`` as its only custom node pack, until the block ends.

    ``base_directory`` is made where missing and keeps the log. ``cpu`` None means: only where no accelerator is found.
    ``port`` None means: any free one. Raises ServerError if the port is taken, the server does not come up or the pack
    cannot be imported.
    """
    port = _free_port(port)
    base_directory = base_directory.absolute()
    for name in ("custom_nodes", "input", "models", "output", "user"):
        (base_directory / name).mkdir(parents=True, exist_ok=True)
    flags = [
        *("--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch", "--disable-api-nodes"),
        *("--base-directory", str(base_directory), "--database-url", "sqlite:///:memory:"),
        *("--use-pytorch-cross-attention", "--disable-all-custom-nodes", *_pack_flags(base_directory, pack)),
        *(["--cpu"] if (_lacks_accelerator(host) if cpu is None else cpu) else []),
    ]
    command = [str(host.python), str(host.comfyui / "main.py"), *flags, *extra_args]
    with (base_directory / LOG_NAME).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=host.comfyui, env=host_environment(), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        client = Client(f"127.0.0.1:{port}", base_directory, process)
        _wait_until_ready(client)
        yield client
    finally:
        _stop(process)


def _pack_flags(base_directory: Path, pack: Path) -> list[str]:
    link = base_directory / "custom_nodes" / PACK_FOLDER
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(pack.absolute(), target_is_directory=True)
    except OSError:
        # Windows lets not every user make links: name the pack's parent folder as one that holds custom nodes.
        paths = base_directory / "custom_nodes.yaml"
        paths.write_text(f"pack:\n  custom_nodes: {json.dumps(str(pack.absolute().parent))}\n", encoding="utf-8")
        return ["--whitelist-custom-nodes", pack.name, "--extra-model-paths-config", str(paths)]
    return ["--whitelist-custom-nodes", PACK_FOLDER]


@cache
def _lacks_accelerator(host: Host) -> bool:
    if shutil.which("nvidia-smi") or sys.platform == "darwin":
        return False
    if (host.comfyui.parent / STAMP).is_file():
        return True  # the torch of our own set-up knows no other hardware
    probe = "import torch; print(torch.cuda.is_available() or hasattr(torch, 'xpu') and torch.xpu.is_available())"
    answer = subprocess.run([str(host.python), "-c", probe], capture_output=True, text=True, check=False)
    return answer.stdout.strip() != "True"


def _free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        if sys.platform != "win32":  # there, it would let two servers share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            raise ServerError(
                f"Port {wanted} cannot be used: {error.strerror}. Perhaps another ComfyUI has it. Name another port; "
                f"without one, a free one is taken."
            ) from error
        return probe.getsockname()[1]


def _wait_until_ready(client: Client) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not client.answers():
        status = client.process.poll()
        if status is not None:
            raise ServerError(f"ComfyUI ended with status {status} while starting.\n{log_tail(client.log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"ComfyUI was not ready after {START_TIMEOUT:.0f} s.\n{log_tail(client.log)}")
        time.sleep(0.2)
    _, _, warnings = log_text(client.log).partition("[WARNING] ")
    if "(IMPORT FAILED)" in warnings:
        raise ServerError(f"ComfyUI could not import the pack; log: {client.log}\n{warnings}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.terminate()
    else:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
