"""The files that let a run go on where it stopped: a latent and a video for every finished segment.

A file gets its name only when it is complete. Until then it has a hidden one of its own, so that two servers may write
into one folder, and two of them the same segment: the last one's file stays, and both are alike. What a killed process
leaves under such a name is never read and never in the way; whether another process still writes it cannot be known
from here (another computer, another container), so it stays until someone deletes it.
"""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import comfy.utils
import safetensors
import torch
from torch import Tensor

from .plan import Segment

FINGERPRINT_DIGITS = 12
METADATA = "longcat_fingerprint"


@dataclass(frozen=True)
class SegmentFiles:
    """The files of the segments of one video: `<name>_<number>_<fingerprint>.latent` and `<...><video_tag>.mp4`.

    None is ever overwritten by one of other inputs.
    """

    folder: Path
    name: str
    video_tag: str = ""

    def latent(self, segment: Segment) -> Path:
        """The latent of a segment, in the format of ComfyUI's *Load Latent*."""
        return self._path(segment, ".latent")

    def video(self, segment: Segment) -> Path:
        """The new frames of a segment."""
        return self._path(segment, f"{self.video_tag}.mp4")

    def save_latent(self, segment: Segment, samples: Tensor) -> None:
        """Keep a finished segment `[1, 16, T, H, W]`.

        Raises:
            OSError: as `completed`.
        """
        tensors = {"latent_tensor": samples.cpu().contiguous(), "latent_format_version_0": torch.tensor([])}
        metadata = {METADATA: segment.fingerprint}
        with completed(self.latent(segment)) as path:
            comfy.utils.save_torch_file(tensors, str(path), metadata=metadata)

    def load_latent(self, segment: Segment) -> Tensor | None:
        """The finished segment `[1, 16, T, H, W]`, or None if there is none.

        Raises:
            ValueError: the file cannot be read, is damaged, or holds a segment of other inputs.
        """
        path = self.latent(segment)
        if not is_there(path):
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                fingerprint = (file.metadata() or {})[METADATA]
                samples = file.get_tensor("latent_tensor")
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}). Delete it; its segment is then made again.") from error
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read ({error}). Allow reading it, or move it away; its segment is then made again."
            ) from error
        if fingerprint != segment.fingerprint:
            raise ValueError(
                f"{path} holds a segment of other inputs: it was renamed or copied here. Move it away, or choose "
                f"another filename_prefix."
            )
        return samples

    def has_video(self, segment: Segment) -> bool:
        """Whether the new frames of a segment are written; raises ValueError as `is_there`."""
        return is_there(self.video(segment))

    def _path(self, segment: Segment, ending: str) -> Path:
        return self.folder / f"{self.name}_{segment.number:03}_{segment.fingerprint[:FINGERPRINT_DIGITS]}{ending}"


def is_there(path: Path) -> bool:
    """Whether a file is there; raises ValueError if something else is in its place."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file. Move it away; its segment is then made again.")
    return path.exists()


@contextmanager
def completed(path: Path) -> Iterator[Path]:
    """Write a file under a hidden name first: `with completed(path) as temporary`; only success gives it its own.

    The file has the rights that new files have here, whatever the writer of it gave it.

    Raises:
        OSError: it cannot be written, with the sentence to show; nothing is left of it.
    """
    temporary = path.with_name(
        f".{path.stem}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part{path.suffix}"
    )
    try:
        try:
            temporary.touch(exist_ok=False)
            rights = temporary.stat().st_mode
            yield temporary
            if temporary.stat().st_mode != rights:
                temporary.chmod(rights)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise OSError(
            f"{path} cannot be written: {error}. What was finished before is kept: make room or allow writing, then "
            f"queue the same inputs again."
        ) from error
