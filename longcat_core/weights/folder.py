"""Read the files of a model folder and check them; every error is one sentence with the path in it."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .advice import DOWNLOAD_AGAIN
from .quantization import MARKER
from .vae_umt5 import wrong_names

CONFIG = "config.json"
WEIGHTS = "*.safetensors"
INDEX = "*.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing or is not a JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing. {DOWNLOAD_AGAIN}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {DOWNLOAD_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of an object. {DOWNLOAD_AGAIN}")
    return content


def weight_files(component: Path) -> list[Path]:
    """The safetensors files of a component: the shards that its index names, or its only file.

    Raises:
        ValueError: no file, a shard is missing, or several files without an index.
    """
    files = sorted(component.glob(WEIGHTS))
    indices = sorted(component.glob(INDEX))
    if not indices:
        if not files:
            raise ValueError(f"{component} holds no .safetensors file. {DOWNLOAD_AGAIN}")
        if len(files) > 1:
            raise ValueError(
                f"{component} holds {len(files)} .safetensors files but no {INDEX} that lists them. {DOWNLOAD_AGAIN}"
            )
        return files
    weight_map = read_json(indices[0]).get("weight_map")
    listed = list(weight_map.values()) if isinstance(weight_map, dict) else []
    names = sorted(set(listed)) if all(isinstance(name, str) for name in listed) else []
    present = {file.name for file in files}
    missing = [name for name in names if name not in present]
    if missing or not names:
        what = f"{', '.join(missing)} missing" if missing else "no files listed"
        raise ValueError(f"{indices[0]} lists {len(names)} files, {what}. {DOWNLOAD_AGAIN}")
    return [component / name for name in names]


def check_sizes(config: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Compare the sizes that a config names with those of the tensors.

    Raises:
        ValueError: they disagree; lists each size.
    """

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    wrong = [
        f"{name} is {config[name]!r} in {CONFIG} but {plain(size)!r} in the tensors"
        for name, size in actual.items()
        if name in config and config[name] != plain(size)
    ]
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)}. {CONFIG} and weights are of different models: download both from the same repository."
        )


def check_names(component: Path, names: Iterable[str], expected: frozenset[str]) -> None:
    """Compare tensor names; further tensors of a known layer (quantisation scales) are fine.

    Raises:
        ValueError: names are missing or do not belong to the model; gives examples of both.
    """
    names = set(names)
    layers = {name.rpartition(".")[0] for name in expected}
    unknown = {name for name in names - expected - {MARKER} if name.rpartition(".")[0] not in layers}
    wrong = wrong_names(expected - names, unknown)
    if wrong:
        raise ValueError(f"{component}: of {len(expected)} expected tensors {wrong}. {DOWNLOAD_AGAIN}")


def setting(path: Path | str, config: Mapping[str, Any], name: str, kind: Any, words: str, default: Any) -> Any:
    """A setting of a config that was read from `path`, or its default.

    Raises:
        ValueError: it is of another kind than `kind`, which `words` names, or a number that is not finite.
    """
    value = config.get(name, default)
    is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not is_kind or not math.isfinite(value):
        raise ValueError(f"{path}: {name} is {value!r}; it must be {words}. {DOWNLOAD_AGAIN}")
    return value
