"""What the inputs of a running node are made from, as ComfyUI knows it, for fingerprints of segments."""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import execution
import folder_paths
import nodes

from ..longcat_core.segments.contents import file_digest, memory_digest, model_of
from ..longcat_core.segments.fingerprint import conditioning_digest, digest, graph_digest
from .loaders import folder_content, model_folders

MODELS = {"MODEL", "CLIP", "VAE"}
FIRST_MET: WeakKeyDictionary[Any, dict[tuple[str, str, str], Any]] = WeakKeyDictionary()
"""What the files of its loaders held when a model was first met: a cached loader gives the same model again."""
NO_MODELS = {"custom_nodes", "datasets"}  # kinds of folders in which ComfyUI takes any file for one of theirs


class Declared(NamedTuple):
    """What a node declares of its inputs."""

    defaults: dict[str, Any]
    choices: dict[str, list[Any]]
    changes_models: bool
    """Whether it takes a model, as a node for LoRAs does and a loader does not."""


def declared(class_type: str) -> Declared:
    """Of a node of any kind that ComfyUI knows."""
    groups = nodes.NODE_CLASS_MAPPINGS[class_type].INPUT_TYPES()
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    found = Declared({}, {}, any(kind in MODELS for kind, *_ in inputs.values() if isinstance(kind, str)))
    for name, (kind, *more) in inputs.items():
        options = more[0] if more else {}
        if "default" in options:
            found.defaults[name] = options["default"]
        choices = kind if isinstance(kind, list) else options.get("options")
        if choices is not None:
            found.choices[name] = choices
    return found


@dataclass(frozen=True)
class ComfyGraph:
    """The prompt that a node runs in; a `Graph` of segments/fingerprint.py."""

    dynprompt: Any
    known: dict[str, Declared] = field(default_factory=dict)
    loaded: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    """Contents of files by what named them, where they are known from before."""

    def node(self, node_id: str) -> Mapping[str, Any]:
        """Of the prompt, or one that another node put into it meanwhile."""
        return self.dynprompt.get_node(node_id)

    def declared(self, class_type: str) -> Declared:
        """As `declared`, which may list folders, once."""
        if class_type not in self.known:
            self.known[class_type] = declared(class_type)
        return self.known[class_type]

    def defaults(self, class_type: str) -> Mapping[str, Any]:
        """Of the inputs that declare one."""
        return self.declared(class_type).defaults

    def file(self, class_type: str, name: str, value: str) -> Any:
        """Contents of the model folder, or of the file, at whatever place ComfyUI finds it."""
        if class_type and self.declared(class_type).changes_models:
            return self.content(class_type, name, value)
        named = (class_type, name, value)
        if named not in self.loaded:
            self.loaded[named] = self.content(*named)
        return self.loaded[named]

    def content(self, class_type: str, name: str, value: str) -> Any:
        """Contents as they are now; None where the value names nothing."""
        if value in model_folders():
            return folder_content(model_folders()[value])
        choices = self.declared(class_type).choices.get(name) if class_type else None
        return sorted({file_digest(path) for path in named_files(value, choices)}) or None

    def changed(self, node_id: str) -> Any:
        """As ComfyUI's own caches ask; they have asked already, unless they are turned off."""
        node = self.node(node_id)
        if "is_changed" in node:
            return node["is_changed"]
        asked = execution.IsChangedCache("", self.dynprompt, None)
        with ThreadPoolExecutor(1) as other:  # the running node keeps this thread's event loop busy
            return other.submit(asyncio.run, asked.get(node_id)).result()


def named_files(value: str, choices: list[Any] | None) -> list[Path]:
    """The files that a value may name: one with its whole path, or one in ComfyUI's folders for models.

    Args:
        value: of an input, or of a part of it.
        choices: all values that the input offers. Where they hold all files of a kind of folder, it is of that kind.
    """
    if Path(value).is_absolute():
        return [path for path in [Path(value)] if os.access(path, os.R_OK) and path.is_file()]
    kinds = set(folder_paths.folder_names_and_paths) - NO_MODELS
    found = {kind: path for kind in kinds if value and (path := folder_paths.get_full_path(kind, value))}
    offered = {kind for kind in found if choices and all(n in choices for n in folder_paths.get_filename_list(kind))}
    return [Path(path) for kind, path in found.items() if kind in offered or not offered]


def models_digest(hidden: Any, **connected: Any) -> str:
    """A fingerprint of the MODEL, CLIP and VAE that are connected to the inputs of these names of a running node."""
    inputs = ComfyGraph(hidden.dynprompt).node(hidden.unique_id)["inputs"]
    found = []
    for name, source in connected.items():
        model = model_of(source)
        loaded = {} if model is None else FIRST_MET.setdefault(model, {})
        graph = ComfyGraph(hidden.dynprompt, loaded=loaded)
        found.append((graph_digest(graph, inputs[name]), memory_digest(source)))
    return digest(*found)


def prompt_digest(hidden: Any, name: str, conditioning: list) -> str:
    """A fingerprint of the CONDITIONING that is connected to the input of this name of a running node."""
    graph = ComfyGraph(hidden.dynprompt)
    return conditioning_digest(conditioning, graph, graph.node(hidden.unique_id)["inputs"][name])
