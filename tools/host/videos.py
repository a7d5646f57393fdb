"""Read, write and show small videos, with the libraries that ComfyUI brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import av
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NEARLY_LOSSLESS = {"crf": "4"}


def read_video(file: Any) -> tuple[np.ndarray, float]:
    """Frames of a path or a binary file, uint8 `[T, height, width, 3]`, and frames per second."""
    with av.open(file) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate)


def write_video(frames: np.ndarray, path: Path, frames_per_second: int = 15) -> None:
    """Write uint8 frames `[T, height, width, 3]` as a video, nearly without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options=NEARLY_LOSSLESS)
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def saved_file(prompt: dict[str, dict[str, Any]], outputs: dict[str, Any]) -> dict[str, str]:
    """What *Save Video* wrote: `filename` and `subfolder`, from a prompt and the outputs of its nodes."""
    (save,) = (node_id for node_id, node in prompt.items() if node["class_type"] == "SaveVideo")
    (file,) = outputs[save]["images"]
    return file


def spread(frames: Sequence[np.ndarray] | np.ndarray, count: int) -> list[np.ndarray]:
    """`count` of the frames, evenly spread, with the first and the last."""
    return [frames[round(index * (len(frames) - 1) / (count - 1))] for index in range(count)]


def write_contact_sheet(frames: np.ndarray, path: Path, columns: int = 6, rows: int = 2) -> None:
    """Write evenly spread frames, from the first to the last, side by side and enlarged."""
    _, height, width, _ = frames.shape
    scale, gap = max(1, 128 // width), 4
    cell_width, cell_height = scale * width + gap, scale * height + gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), "white")
    for index, frame in enumerate(spread(frames, columns * rows)):
        row, column = divmod(index, columns)
        place = (gap + column * cell_width, gap + row * cell_height)
        enlarged = Image.fromarray(frame).resize((scale * width, scale * height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, place)
    sheet.save(path)
