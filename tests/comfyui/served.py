"""What a real server did with a prompt: samplings, files, log."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import safetensors.torch
from torch import Tensor

Prompt = dict[str, dict]
VIDEO_NOISE = 2.0


def samplings(events: list[Any]) -> list[int]:
    """Model calls of every sampling that began; ComfyUI reports at least the first and the last step of each."""
    return [event.data["max"] for event in events if event.type == "progress" and event.data["value"] == 1]


def sampled(server: Any, prompt: Prompt) -> list[int]:
    """Run a prompt; model calls of every sampling."""
    from host.client import outputs

    events: list[Any] = []
    outputs(server.run(prompt, events.append))
    return samplings(events)


def output(server: Any, *parts: str) -> Path:
    return server.base_directory.joinpath("output", *parts)


def latents(server: Any, name: str) -> list[Path]:
    """The latents of a storyboard's segments."""
    return sorted(output(server, "longcat").glob(f"{name}_*.latent"))


def samples_of(path: Path) -> Tensor:
    """The segment's latent. Files of one content may differ: safetensors writes the metadata in any order."""
    return safetensors.torch.load(path.read_bytes())["latent_tensor"]


def frames_of(path: Path) -> np.ndarray:
    """Frames `[F, H, W, 3]` of a video file."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def same_video(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two videos `[F, H, W, 3]` are of the same frames.

    H.264 does not always come out the same: frames of one picture may differ, by a mean of up to `VIDEO_NOISE` of 255.
    """
    return x.shape == y.shape and bool(np.abs(x.astype(np.float32) - y).mean(axis=(1, 2, 3)).max() <= VIDEO_NOISE)


def state(paths: list[Path]) -> list[tuple[str, int, bytes]]:
    """Names, modification times and contents."""
    return [(path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in paths]


class log_of:  # noqa: N801 - reads as a function
    """`with log_of(server) as log`: what the server logs in the block is `log.text` behind it."""

    def __init__(self, server: Any) -> None:
        self.path = server.log

    def __enter__(self) -> "log_of":
        self.start = self.path.stat().st_size
        return self

    def __exit__(self, *_: object) -> None:
        self.text = self.path.read_bytes()[self.start :].decode()


def samplings_and_log(server: Any, prompt: Prompt) -> tuple[list[int], str]:
    with log_of(server) as log:
        calls = sampled(server, prompt)
    return calls, log.text
