"""What a run has to write: the parts that a source holds, the files made of them, and what is copied as it is."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from longcat_core.conversion.model import (
    COMFY_PLACES,
    DIT,
    LORA,
    OFFICIAL_PLACES,
    RULES,
    TEXT_ENCODER,
    DitSource,
    kind_of,
    targets_of,
)
from longcat_core.weights.folder import weight_files
from longcat_core.weights.safetensors_file import Reader
from longcat_core.weights.safetensors_writer import Plan
from prepare.formats import COMFY, OFFICIAL

MODEL = "longcat_video"
DIT_FOLDERS = ("dit", "transformer")
TEXT_FOLDER, TOKENIZER_FOLDER, VAE_FOLDER, LORA_FOLDER = "text_encoder", "tokenizer", "vae", "lora"
COPIED_FOLDERS = (TOKENIZER_FOLDER, "scheduler")
SPIECE_FILE = "spiece.model"
CONFIG = "config.json"
WEIGHTS = ".safetensors"
KNOWN = "an official folder, one of its parts, or a .safetensors file with LongCat-Video's DiT or a LoRA for it"


class Part(NamedTuple):
    """Files that hold a part of a model, and the name for what is made of them."""

    files: list[Path]
    name: str


class Output(NamedTuple):
    """A file to write."""

    path: Path
    kind: str
    plan: Plan


class Copy(NamedTuple):
    """A small file to write as it is."""

    path: Path
    content: bytes


class Work(NamedTuple):
    """All that a run writes."""

    outputs: list[Output]
    copies: list[Copy]
    left_out: list[Path]


def plan_work(source: Path, dest: Path, dtype: str, layout: str) -> Work:
    """What a run has to write.

    Raises:
        ValueError: the source is not understood or damaged, or DEST cannot be used.
        OSError: a file cannot be read.
    """
    if dest.exists() and (not dest.is_dir() or dest.resolve() == source.resolve()):
        raise ValueError(f"{dest} is {'SOURCE itself' if dest.is_dir() else 'a file'}: name another folder as DEST.")
    work = Work([], [], [])
    places = COMFY_PLACES if layout == COMFY else OFFICIAL_PLACES
    for part in find_parts(source):
        reader = Reader(part.files)
        try:
            kind = kind_of(reader.tensors)
        except ValueError as error:
            raise ValueError(f"{part.files[0]}: {error}") from error
        if kind is None:
            raise ValueError(f"{part.files[0]} holds another model: name {KNOWN}.")
        if kind == LORA and layout == OFFICIAL:
            work.left_out.extend(part.files)
            continue
        path = dest / places[kind].format(name=part.name, dtype=dtype)
        if path.resolve() in [file.resolve() for file in part.files]:
            raise ValueError(f"{path} is what it would be made from: name another folder as DEST.")
        folder = part.files[0].parent
        sources, spiece = list(part.files), None
        if kind == TEXT_ENCODER and layout == COMFY:
            sources.append(folder.parent / TOKENIZER_FOLDER / SPIECE_FILE)
            spiece = read_small(sources[-1])
        try:
            targets = targets_of(kind, reader, dtype, layout == COMFY, spiece)
        except ValueError as error:
            raise ValueError(f"{part.files[0]}: {error}") from error
        work.outputs.append(Output(path, kind, Plan(targets, identity(sources))))
        if layout == OFFICIAL:
            work.copies.append(Copy(path.with_name(CONFIG), config_of(folder, kind, reader)))
    if not work.outputs:
        raise ValueError(f"{source} holds LoRAs only, which have no official layout: use --layout comfy.")
    if layout == OFFICIAL:
        work.copies.extend(_copied_folders(source, dest))
        _check_strangers(work)
    return work


def find_parts(source: Path) -> list[Part]:
    """The parts of a model below a folder, or the one that a folder or file is.

    Raises:
        ValueError: there is none, or files of one are missing.
    """
    if source.is_file():
        return [Part([source], source.stem)]
    folders = [next((source / name for name in DIT_FOLDERS if (source / name).is_dir()), source / DIT_FOLDERS[0])]
    folders += [source / TEXT_FOLDER, source / VAE_FOLDER]
    parts = [Part(weight_files(folder), MODEL) for folder in folders if folder.is_dir()]
    is_lora = source.name == LORA_FOLDER
    loras = sorted((source if is_lora else source / LORA_FOLDER).glob(f"*{WEIGHTS}"))
    parts += [Part([file], f"{MODEL}_{file.stem}") for file in loras]
    if not parts and any(source.glob(f"*{WEIGHTS}")):
        parts = [Part(weight_files(source), MODEL)]
    if not parts:
        raise ValueError(f"{source} holds no weights: name {KNOWN}.")
    return parts


def identity(files: Iterable[Path]) -> str:
    """Words that change when a file does, or the rules that it is converted by."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([RULES, *stats])


def config_of(folder: Path, kind: str, reader: Reader) -> bytes:
    """The config beside a part; a DiT without one gets one that says what its tensors do.

    Raises:
        ValueError: there is none, and none can be made.
    """
    if kind == DIT and not (folder / CONFIG).is_file():
        return json.dumps(DitSource(reader).released_config, indent=2).encode()
    return read_small(folder / CONFIG)


def read_small(path: Path) -> bytes:
    """A file's content.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: download it from meituan-longcat/LongCat-Video.")
    return path.read_bytes()


def _copied_folders(source: Path, dest: Path) -> Iterator[Copy]:
    for folder in COPIED_FOLDERS:
        for file in sorted((source / folder).glob("*")):
            if file.is_file():
                yield Copy(dest / folder / file.name, file.read_bytes())


def _check_strangers(work: Work) -> None:
    """LongCatLoader takes a folder's only file: another one beside it would be in its way."""
    for output in work.outputs:
        others = [
            file for file in output.path.parent.glob(f"*{WEIGHTS}*") if not file.name.startswith(output.path.name)
        ]
        if others:
            raise ValueError(f"{others[0]} is of other weights: name a folder as DEST that does not exist yet.")
