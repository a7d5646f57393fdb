"""ComfyUI as what long videos are made in: its output folder, progress texts, cancel button and video files."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types, io, ui
from folder_paths import get_output_directory, get_save_image_path
from server import PromptServer
from torch import Tensor

from ..longcat_core.segments.files import SegmentFiles
from ..longcat_core.segments.plan import Segment


@dataclass(frozen=True)
class ComfyHost:
    """What ComfyUI does for the running node; a `Host` of segments/loop.py."""

    files: SegmentFiles
    subfolder: str
    node_id: str
    metadata: dict[str, Any] | None

    def show(self, text: str) -> None:
        """Write it on the node."""
        PromptServer.instance.send_progress_text(text, self.node_id)

    def stop_if_interrupted(self) -> None:
        """Raise as core's samplers do."""
        comfy.model_management.throw_exception_if_processing_interrupted()

    def kept(self, samples: Tensor) -> Tensor:
        """Where core keeps latents."""
        return samples.to(comfy.model_management.intermediate_device())

    def write_video(self, path: Path, frames: Tensor, fps: Fraction) -> None:
        """H.264, with the workflow in it."""
        video = Types.VideoComponents(images=frames, frame_rate=fps)
        container = Types.VideoContainer.MP4
        InputImpl.VideoFromComponents(video).save_to(str(path), format=container, metadata=self.metadata)

    def preview(self, segments: list[Segment]) -> ui.PreviewVideo:
        """What the node shows: the segments."""
        names = [self.files.video(segment).name for segment in segments]
        return ui.PreviewVideo([ui.SavedResult(name, self.subfolder, io.FolderType.output) for name in names])


def host_of(hidden: Any, filename_prefix: str, width: int, height: int, video_tag: str = "") -> ComfyHost:
    """The host of a running node.

    Args:
        hidden: the node's hidden inputs unique_id, dynprompt and extra_pnginfo.
        filename_prefix: as of ComfyUI's own nodes that save.
        width, height: what stands for %width% and %height% in it.
        video_tag: what only the videos depend on.
    """
    folder, name, _, subfolder, _ = get_save_image_path(filename_prefix, get_output_directory(), width, height)
    files = SegmentFiles(Path(folder), name, video_tag)
    return ComfyHost(files, subfolder, hidden.unique_id, video_metadata(hidden))


def check_prefix(filename_prefix: str) -> None:
    """Raise ValueError if files cannot begin like this."""
    if Path(filename_prefix).name.strip() in ("", ".."):
        raise ValueError("filename_prefix has no name at its end. Write how the segments' files begin, such as long.")
    output = Path(get_output_directory()).absolute()
    if not Path(os.path.normpath(output / filename_prefix)).is_relative_to(output):
        raise ValueError(
            f"filename_prefix is {filename_prefix}, which leads out of the output folder. Write a folder and a name in "
            f"it, such as longcat/long."
        )


def video_metadata(hidden: Any) -> dict[str, Any] | None:
    """What ComfyUI writes into its videos, so that dropping one on the graph editor opens its workflow."""
    if args.disable_metadata:
        return None
    return {"prompt": hidden.dynprompt.original_prompt, **(hidden.extra_pnginfo or {})}
