"""Make the segments of a long video, one after the other, and keep each as soon as it is there."""

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types, io, ui
from folder_paths import get_output_directory, get_save_image_path
from server import PromptServer
from torch import Tensor

from ..longcat_core.segments.files import SegmentFiles, completed
from ..longcat_core.segments.fingerprint import digest, graph_digest
from ..longcat_core.segments.loop import Made, Studio
from ..longcat_core.segments.plan import Segment


def segment_files(filename_prefix: str, width: int, height: int, video_tag: str = "") -> tuple[SegmentFiles, str]:
    """The files of segments in the output folder, and the subfolder that they are in.

    Args:
        filename_prefix: as of ComfyUI's own nodes that save.
        width, height: what stands for %width% and %height% in it.
        video_tag: what only the videos depend on.
    """
    folder, name, _, subfolder, _ = get_save_image_path(filename_prefix, get_output_directory(), width, height)
    return SegmentFiles(Path(folder), name, video_tag), subfolder


def check_prefix(filename_prefix: str) -> None:
    """Raise ValueError if files cannot begin like this."""
    if Path(filename_prefix).name.strip() in ("", ".."):
        raise ValueError("filename_prefix has no name at its end. Write how the segments' files begin, such as long.")


def preview(segments: list[Segment], files: SegmentFiles, subfolder: str) -> ui.PreviewVideo:
    """What the node shows: the segments."""
    return ui.PreviewVideo(
        [ui.SavedResult(files.video(segment).name, subfolder, io.FolderType.output) for segment in segments]
    )


def save_frames(path: Path, frames: Tensor, fps: Fraction, metadata: dict[str, Any] | None) -> None:
    """Write frames `[F, H, W, 3]` as a video that appears under its name only when it is complete."""
    video = Types.VideoComponents(images=frames, frame_rate=fps)
    with completed(path) as temporary:
        InputImpl.VideoFromComponents(video).save_to(str(temporary), format=Types.VideoContainer.MP4, metadata=metadata)


def make_video(
    studio: Studio, segments: list[Segment], files: SegmentFiles, node_id: str, metadata: dict[str, Any] | None
) -> Tensor:
    """The whole video `[F, H, W, 3]`; every segment is on disk before the next one begins, and is not made twice."""
    to_do = [segment for segment in segments if not files.latent(segment).exists()]
    logging.info("%s: %s of %s segments are to be made.", studio.title, len(to_do), len(segments))
    if to_do:
        studio.prepare(to_do)
    video: Tensor | None = None
    previous: Made | None = None
    first: Tensor | None = None
    end = 0
    for segment in segments:
        comfy.model_management.throw_exception_if_processing_interrupted()
        PromptServer.instance.send_progress_text(f"Segment {segment.number} of {len(segments)}", node_id)
        samples = files.load_latent(segment)
        if samples is None:
            samples = studio.make(segment, previous, first)
            files.save_latent(segment, samples)
        samples = samples.to(comfy.model_management.intermediate_device())
        first = samples if first is None else first

        previous = Made(samples, studio.decode(segment, samples))
        new = previous.frames[studio.num_shared(segment) :]
        if video is None:
            video = new.new_empty(studio.num_frames(len(segments)), *new.shape[1:])
        video[end : end + len(new)] = new
        end += len(new)
        if not files.video(segment).exists():
            save_frames(files.video(segment), new, studio.fps, metadata)
    assert video is not None
    return video


def video_metadata(hidden: Any) -> dict[str, Any] | None:
    """What ComfyUI writes into its videos, so that dropping one on the graph editor opens its workflow."""
    if args.disable_metadata:
        return None
    return {"prompt": hidden.dynprompt.original_prompt, **(hidden.extra_pnginfo or {})}


def sources_digest(hidden: Any, *names: str) -> str:
    """A fingerprint of the nodes that these inputs of the running node come from."""
    inputs = hidden.dynprompt.get_node(hidden.unique_id)["inputs"]
    return digest(*(graph_digest(hidden.dynprompt.get_node, inputs[name]) for name in names))
