"""Bring LongCat-Video's weights into single files that ComfyUI's own loaders take, or into a folder for LongCatLoader.

    python3 scripts/prepare_weights.py SOURCE DEST [--dtype bf16|fp8|int8|nvfp4] [--layout comfy|official] [--validate]

SOURCE is the official download (dit/ or transformer/, text_encoder/, tokenizer/, vae/, scheduler/, lora/), one of its
folders with weights, or a .safetensors file with a DiT or a LoRA, named and quantised in any way that the pack reads.

With --layout comfy DEST is ComfyUI's models folder: diffusion_models/, text_encoders/, vae/ and loras/ are written
below it. With --layout official it is a folder for LongCatLoader. --dtype is of the DiT's large matrices; the rest and
the text encoder are bf16, the VAE stays as it is. It takes about 1 GB of memory, whatever the size. Stopped at any
time, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # an embedded Python does not do it
from host import PACK, HostError, cache_root, ensure_host, exclusive, run_command, run_in_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from longcat_core.weights.safetensors_file import Plan, Reader
    from longcat_core.weights.values import Plain, Quantised

DTYPES = ("bf16", "fp8", "int8", "nvfp4")
COMFY, OFFICIAL = "comfy", "official"
MODEL = "longcat_video"
DIT_FOLDERS = ("dit", "transformer")
TEXT_FOLDER, TOKENIZER_FOLDER, VAE_FOLDER, LORA_FOLDER = "text_encoder", "tokenizer", "vae", "lora"
COPIED_FOLDERS = (TOKENIZER_FOLDER, "scheduler")
SPIECE_FILE = "spiece.model"
CONFIG = "config.json"
WEIGHTS = ".safetensors"
NUM_EXAMPLES = 5
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


def main() -> int:
    """Set up the host, then run this file again under its Python."""
    options = _options()
    if not options.hosted:
        host = ensure_host(packages=["tqdm"])
        return run_in_host(host, [__file__, *sys.argv[1:], "--hosted"])
    sys.path.append(str(PACK))  # last, or the pack's nodes/ would hide ComfyUI's
    try:
        with exclusive(lock_of(options.dest)):
            return prepare(options)
    except (ValueError, OSError) as error:
        raise HostError(str(error)) from error


def lock_of(dest: Path) -> Path:
    """The file that a run holds while it writes into a folder: two would write the same bytes into each other's way."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(str(dest.resolve()).encode()).hexdigest()[:16]}.lock"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the weights as they were downloaded")
    parser.add_argument("dest", type=Path, metavar="DEST", help="the folder to write into")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the DiT's large matrices (default: bf16)")
    parser.add_argument("--layout", choices=(COMFY, OFFICIAL), default=COMFY, help="of DEST (default: comfy)")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="read everything back and compare it with SOURCE; files that are there already are only compared",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there already")
    parser.add_argument("--hosted", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> int:
    """Plan, check, write, and compare; return the exit status.

    Raises:
        ValueError: the source is not understood or damaged, files are there already, or a disk is too small.
        OSError: a file cannot be read or written.
    """
    from longcat_core.weights.safetensors_file import forget, is_finished, write_small

    work = plan_work(options.source, options.dest, options.dtype, options.layout)
    finished = {output.path for output in work.outputs if is_finished(output.path, output.plan)}
    present = {output.path for output in work.outputs if output.path.exists()} - finished
    changed = {copy.path for copy in work.copies if copy.path.exists() and copy.path.read_bytes() != copy.content}
    in_the_way = sorted(changed if options.validate else changed | present)
    if in_the_way and not options.force:
        raise ValueError(
            f"{', '.join(map(str, in_the_way))}: already there; name another folder, compare with --validate, or "
            "replace with --force."
        )
    kept = finished if options.force else finished | present
    new = [output for output in work.outputs if output.path not in kept]
    check_disk(new)
    for path in sorted(kept):
        print(f"{path}: already there, not written again")
    for path in work.left_out:
        print(f"{path}: left out, as LoRAs are read from ComfyUI's models/loras; --layout comfy writes it")
    for copy in work.copies:
        write_small(copy.path, copy.content)
    if new:
        write_outputs(new)
    for output in work.outputs:
        forget(output.path)
    return max([compare(output) for output in work.outputs]) if options.validate else 0


# --- what is written --------------------------------------------------------------------------------------------------


def plan_work(source: Path, dest: Path, dtype: str, layout: str) -> Work:
    """What a run has to write.

    Raises:
        ValueError: the source is not understood or damaged, or DEST cannot be used.
        OSError: a file cannot be read.
    """
    from longcat_core.weights.convert import COMFY_PLACES, LORA, OFFICIAL_PLACES, TEXT_ENCODER, kind_of, targets_of
    from longcat_core.weights.safetensors_file import Plan, Reader

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
    from longcat_core.weights.folder import weight_files

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
    from longcat_core.weights.convert import RULES

    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([RULES, *stats])


def config_of(folder: Path, kind: str, reader: Reader) -> bytes:
    """The config beside a part; a DiT without one gets one that says what its tensors do.

    Raises:
        ValueError: there is none, and none can be made.
    """
    from longcat_core.weights.convert import DIT, DitSource

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


# --- writing ----------------------------------------------------------------------------------------------------------


def check_disk(outputs: Iterable[Output]) -> None:
    """Raise ValueError if a disk has less room than the files will take."""
    from longcat_core.weights.safetensors_file import bytes_done

    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for output in outputs:
        # The folders in ComfyUI's models folder may be links to several disks.
        place = next(folder for folder in output.path.parents if folder.is_dir())
        disk = place.stat().st_dev
        needed[disk] = needed.get(disk, 0) + output.plan.nbytes - bytes_done(output.path, output.plan)
        places[disk] = place
    for disk, num_bytes in needed.items():
        free = shutil.disk_usage(places[disk]).free
        if free < num_bytes:
            raise ValueError(
                f"The disk of {places[disk]} has {free / 1e6:,.1f} MB free, {num_bytes / 1e6:,.1f} MB are needed: free "
                "some, or name a folder on another disk."
            )


def write_outputs(outputs: Sequence[Output]) -> None:
    """Write files, showing how far it is, and say what was written in which time.

    Raises:
        ValueError: a disk is full or fails, or the source has numbers that are not finite.
    """
    from longcat_core.weights.safetensors_file import bytes_done, write

    started = time.monotonic()
    done = sum(bytes_done(output.path, output.plan) for output in outputs)
    with progress_bar("writing", outputs) as bar:
        for output in outputs:
            bar.set_description(output.path.name)
            write(output.path, output.plan, bar.update)
    seconds = time.monotonic() - started
    for output in outputs:
        print(f"{output.path}: {output.kind}, {output.path.stat().st_size / 1e6:,.1f} MB")
    num_bytes = sum(num_data_bytes(output) for output in outputs) - done
    print(f"{num_bytes / 1e6:,.1f} MB in {seconds:.1f} s, {num_bytes / 1e6 / seconds:.0f} MB/s{peak_memory()}")


def progress_bar(title: str, outputs: Iterable[Output]) -> Any:
    """A bar for all numbers of files, in bytes."""
    from tqdm import tqdm

    return tqdm(desc=title, total=sum(map(num_data_bytes, outputs)), unit="B", unit_scale=True)


def num_data_bytes(output: Output) -> int:
    """Size of a file's tensors."""
    return sum(kind.nbytes for kind in output.plan.tensors.values())


def peak_memory() -> str:
    """The most memory that this process has had, as words; nothing on Windows, which does not say it."""
    if sys.platform == "win32":
        return ""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"; at most {peak / 1e6:,.0f} MB of memory"


# --- comparing --------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was found in the tensors of one format."""

    num_tensors: int = 0
    num_equal: int = 0
    largest_error: float = 0.0
    relative_error: float = 0.0


def compare(output: Output) -> int:
    """Compare a file, as the `safetensors` library reads it, with the source; print a table; return 1 if not equal."""
    from safetensors import SafetensorError

    try:
        problems = _wrong_tensors(output)
        tallies = {} if problems else _compare_numbers(output, problems)
    except SafetensorError as error:
        problems, tallies = [f"it cannot be read ({error})"], {}
    print(f"\n{output.path}: {output.kind}, {len(output.plan.tensors)} tensors")
    print(f"{'stored as':<18}{'tensors':>9}{'equal':>9}{'largest error':>15}{'relative error':>16}")
    for stored_as, tally in sorted(tallies.items()):
        errors = (f"{tally.largest_error:.2e}", f"{tally.relative_error:.2e}") if tally.largest_error else ("-", "-")
        print(f"{stored_as:<18}{tally.num_tensors:>9}{tally.num_equal:>9}{errors[0]:>15}{errors[1]:>16}")
    for problem in problems[:NUM_EXAMPLES]:
        print(f"different: {problem}")
    if len(problems) > NUM_EXAMPLES:
        print(f"different: {len(problems) - NUM_EXAMPLES} more")
    print(f"{'differs from' if problems else 'agrees with'} the source{peak_memory()}")
    return 1 if problems else 0


def _wrong_tensors(output: Output) -> list[str]:
    """Names, shapes and dtypes that are not as planned."""
    from safetensors import safe_open

    from longcat_core.weights.safetensors_file import NAMES
    from longcat_core.weights.vae_umt5 import wrong_names

    planned = output.plan.tensors
    with safe_open(output.path, "pt") as file:
        names = set(file.keys())
        wrong = wrong_names(planned.keys() - names, names - planned.keys())
        if wrong:
            return [wrong]
        slices = {name: file.get_slice(name) for name in planned}
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    return [
        f"{name} is {found[name]}, not {(NAMES[kind.dtype], kind.shape)}"
        for name, kind in planned.items()
        if found[name] != (NAMES[kind.dtype], kind.shape)
    ]


def _compare_numbers(output: Output, problems: list[str]) -> dict[str, Tally]:
    """What was found by format; problems are added to those there are."""
    from longcat_core.weights.safetensors_file import NAMES
    from longcat_core.weights.values import HALF_STEP, Quantised

    tallies: dict[str, Tally] = {}
    with progress_bar(f"comparing {output.path.name}", [output]) as bar:
        for target in output.plan.targets:
            stored = functools.partial(_stored, output.path)
            different = _different(stored, target, bar)
            if isinstance(target, Quantised):
                tally = tallies.setdefault(target.quant_format, Tally())
                largest, error, relative = target.errors(stored)
                tally.largest_error = max(tally.largest_error, error)
                tally.relative_error = max(tally.relative_error, relative)
                if not error <= largest * HALF_STEP[target.quant_format]:
                    problems.append(f"{target.layer} is off by {error:.2e}; its largest number is {largest:.2e}")
            else:
                tally = tallies.setdefault(NAMES[target.dtype], Tally())
            tally.num_tensors += len(target.tensors)
            tally.num_equal += len(target.tensors) - len(different)
            problems.extend(f"{name} has other numbers" for name in different)
    return tallies


def _different(stored: Callable[[str, int, int], Any], target: Plain | Quantised, bar: Any) -> list[str]:
    """The tensors whose bytes are not those that the source gives."""
    from longcat_core.weights.values import has_same_bytes

    position = dict.fromkeys(target.tensors, 0)
    different: set[str] = set()
    for name, rows in target.chunks():
        start, position[name] = position[name], position[name] + (len(rows) if rows.ndim else 1)
        if not has_same_bytes(stored(name, start, position[name]), rows):
            different.add(name)
        bar.update(rows.nbytes)
    return sorted(different)


def _stored(path: Path, name: str, start: int, stop: int) -> Any:
    """Rows of a tensor. The library maps the whole file into memory and gives nothing back before it is closed."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        part = file.get_slice(name)
        return part[start:stop] if part.get_shape() else file.get_tensor(name)


if __name__ == "__main__":
    run_command(main)
