"""Long videos in segments: what each is made from, and the files that let a run go on where it stopped.

A segment is a video of ordinary length; every one but the first begins with the last frames of the one before, carried
over as latents. Its fingerprint covers its own prompt, seed and mode, all settings, and the segments before it: a
finished segment is used again exactly where making it anew would give the same, and changing the prompt of the third
keeps the first two.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import comfy.utils
import safetensors
import torch
from torch import Tensor

from ..schedule import Mode

SeedPolicy = Literal["increment", "same"]
SEED_POLICIES: tuple[SeedPolicy, ...] = get_args(SeedPolicy)
STORYBOARD_MODES: tuple[Mode, ...] = ("enhance_hf", "base", "distill")
MAX_SEED = 0xFFFFFFFFFFFFFFFF
FINGERPRINT_DIGITS = 12
METADATA = "longcat_fingerprint"
SAME_RESULT = {
    "LongCatKVCache": {"policy"},
    "LongCatBlockSparseAttention": {"backend"},
}  # inputs of nodes that decide how, not what
FILE_VERSION = 1  # raise when the same inputs give other segments than before


@dataclass(frozen=True)
class Segment:
    """What one segment is made from."""

    index: int
    prompt: str
    seed: int
    mode: Mode
    fingerprint: str

    @property
    def number(self) -> int:
        """For people: the first is 1."""
        return self.index + 1


def prompt_list(text: str) -> list[str]:
    """Prompts of a text, one per line; empty lines do not count.

    Raises:
        ValueError: there is none.
    """
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError("prompts is empty. Write one prompt per line: each line is a segment of the video.")
    return prompts


def prompts_of_segments(text: str, num_segments: int) -> list[str]:
    """One prompt per segment: those of the text, or its only one for all segments.

    Args:
        text: as for `prompt_list`.
        num_segments: 0 means as many as there are prompts.

    Raises:
        ValueError: there are several prompts, but not as many as segments.
    """
    prompts = prompt_list(text)
    if num_segments in (0, len(prompts)):
        return prompts
    if len(prompts) > 1:
        raise ValueError(
            f"There are {len(prompts)} prompts (lines) for {num_segments} segments. Write one prompt for all segments "
            f"or one for each, or set segments to 0, which takes as many as there are prompts."
        )
    return prompts * num_segments


def plan(
    prompts: list[str],
    mode: Mode,
    seed: int,
    seed_policy: SeedPolicy,
    continues: bool,
    settings: Mapping[str, Any],
) -> list[Segment]:
    """The segments of a video.

    Args:
        prompts: one per segment.
        mode: schedule; enhance_hf is for continuations and becomes base in a first segment that is none.
        seed: of the first segment; counted up or kept, as `seed_policy` says.
        continues: whether the first segment goes on from a video.
        settings: everything else that segments are made from, as JSON values.
    """
    segments: list[Segment] = []
    fingerprint = digest(FILE_VERSION, dict(settings))
    for index, prompt in enumerate(prompts):
        begins = index == 0 and not continues
        segment_mode = "base" if begins and mode == "enhance_hf" else mode
        segment_seed = (seed + index) % (MAX_SEED + 1) if seed_policy == "increment" else seed
        fingerprint = digest(fingerprint, prompt, segment_seed, segment_mode)
        segments.append(Segment(index, prompt, segment_seed, segment_mode, fingerprint))
    return segments


def digest(*values: Any) -> str:
    """A fingerprint of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def frames_digest(frames: Tensor | None) -> str | None:
    """A fingerprint of frames."""
    if frames is None:
        return None
    found = hashlib.sha256(str(tuple(frames.shape)).encode())
    found.update(frames.float().cpu().contiguous().numpy())
    return found.hexdigest()


def graph_digest(get_node: Callable[[str], Mapping[str, Any]], link: Any) -> str:
    """A fingerprint of the node that a link `[node id, slot]` of a prompt names and of everything it is made from."""
    known: dict[str, str] = {}

    def value_of(value: Any) -> Any:
        is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
        return [node_digest(value[0]), value[1]] if is_link else value

    def node_digest(node_id: str) -> str:
        if node_id not in known:
            node = get_node(node_id)
            left_out = SAME_RESULT.get(node["class_type"], set())
            inputs = {name: value_of(v) for name, v in node["inputs"].items() if name not in left_out}
            known[node_id] = digest(node["class_type"], inputs)
        return known[node_id]

    return digest(value_of(link))


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
