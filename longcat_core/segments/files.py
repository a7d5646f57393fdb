"""The files of segments."""

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

    A file gets its name only when it is complete, and none is ever overwritten by one of other inputs.
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
        """Keep a finished segment `[1, 16, T, H, W]`."""
        tensors = {"latent_tensor": samples.cpu().contiguous(), "latent_format_version_0": torch.tensor([])}
        metadata = {METADATA: segment.fingerprint}
        with completed(self.latent(segment)) as path:
            comfy.utils.save_torch_file(tensors, str(path), metadata=metadata)

    def load_latent(self, segment: Segment) -> Tensor | None:
        """The finished segment `[1, 16, T, H, W]`, or None if there is none.

        Raises:
            ValueError: the file is damaged, or holds a segment of other inputs.
        """
        path = self.latent(segment)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                fingerprint = file.metadata()[METADATA]
                samples = file.get_tensor("latent_tensor")
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}). Delete it; its segment is then made again.") from error
        if fingerprint != segment.fingerprint:
            raise ValueError(
                f"{path} holds a segment of other inputs: it was renamed or copied here. Move it away, or choose "
                f"another filename_prefix."
            )
        return samples

    def _path(self, segment: Segment, ending: str) -> Path:
        return self.folder / f"{self.name}_{segment.number:03}_{segment.fingerprint[:FINGERPRINT_DIGITS]}{ending}"


class completed:  # noqa: N801 - reads as a function
    """Write a file under another name first: `with completed(path) as temporary`; only success gives it its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.stem}.part{path.suffix}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is None:
            try:
                self.temporary.replace(self.path)
            except OSError as not_replaced:
                error = not_replaced
            else:
                return
        self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | safetensors.SafetensorError):
            raise OSError(
                f"{self.path} cannot be written: {error}. What was finished before is kept: make room or allow "
                f"writing, then queue the same inputs again."
            ) from error
