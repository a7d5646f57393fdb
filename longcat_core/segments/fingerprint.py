"""What a segment is made from, as a fingerprint."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

SAME_RESULT = {
    "LongCatKVCache": {"policy"},
    "LongCatBlockSparseAttention": {"backend"},
}  # inputs of nodes that decide how, not what
FILE_VERSION = 1  # raise when the same inputs give other segments than before


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
