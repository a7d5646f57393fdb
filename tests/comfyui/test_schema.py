"""The nodes as saved workflows know them, held against `schema.json`.

A deliberate change is recorded with `LONGCAT_RENEW_SCHEMA=1 python3 scripts/test.py -k schema`. That refuses what
would break saved workflows: ids are permanent, and inputs and outputs are only ever added at the end.
"""

import json
import os
from collections.abc import Iterator

import nodes
from graphs import MODEL_FOLDERS, PACK, Json, inputs, our_nodes

SCHEMA = PACK / "tests" / "comfyui" / "schema.json"
RENEW = "LONGCAT_RENEW_SCHEMA"
TEXT_ONLY = ("tooltip", "advanced", "multiselect")  # may change freely
HOW_TO_RENEW = f"If that is meant: {RENEW}=1 python3 scripts/test.py -k schema, and look at the difference in git."
Schema = dict[str, Json]


def described(node_id: str) -> Json:
    """A node as a saved workflow depends on it; inputs in the order of its values: required first, then optional."""
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    optional = node.INPUT_TYPES().get("optional", {})
    return {
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS[node_id],
        "category": node.CATEGORY,
        "inputs": [
            {
                "name": name,
                "type": kind,
                "optional": name in optional,
                # The choice of model folders is the computer's, not the node's.
                **{
                    key: value
                    for key, value in options.items()
                    if key not in TEXT_ONLY and not (key == "options" and name in MODEL_FOLDERS)
                },
            }
            for name, kind, options in inputs(node_id)
        ],
        "outputs": [
            {"name": name, "type": kind} for name, kind in zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)
        ],
    }


def current() -> Schema:
    return json.loads(json.dumps({node_id: described(node_id) for node_id in our_nodes()}))


def recorded() -> Schema:
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def differences(old: Schema, new: Schema) -> Iterator[str]:
    """A line for everything that is not as recorded."""
    for node_id in old.keys() | new.keys():
        if node_id not in old or node_id not in new:
            yield f"{node_id} is {'new' if node_id in new else 'gone'}"
            continue
        before, now = old[node_id], new[node_id]
        for name in ("display_name", "category"):
            if before[name] != now[name]:
                yield f"{node_id}: {name} was {before[name]!r}, is {now[name]!r}"
        for side in ("inputs", "outputs"):
            yield from slot_differences(f"{node_id}, {side}", before[side], now[side])


def slot_differences(place: str, old: list[Json], new: list[Json]) -> Iterator[str]:
    names, before = [slot["name"] for slot in new], {slot["name"]: slot for slot in old}
    if names != list(before):
        yield f"{place}: were {', '.join(before)}; are {', '.join(names)}"
    for slot in new:
        known = before.get(slot["name"], slot)
        for key in known.keys() | slot.keys():
            if known.get(key) != slot.get(key):
                yield f"{place}, {slot['name']}: {key} was {known.get(key)!r}, is {slot.get(key)!r}"


def incompatibilities(old: Schema, new: Schema) -> Iterator[str]:
    """A line for every difference that makes saved workflows wrong."""
    for node_id, before in old.items():
        if node_id not in new:
            yield f"{node_id} is gone: node ids are permanent"
            continue
        for side in ("inputs", "outputs"):
            was, now = ([(slot["name"], slot["type"]) for slot in schema[node_id][side]] for schema in (old, new))
            if now[: len(was)] != was:
                yield f"{node_id}: {side} were {was}, are {now}; they may only be added to, at the end"
        for slot, there in zip(new[node_id]["inputs"], before["inputs"], strict=False):
            if there["optional"] and not slot["optional"]:
                yield f"{node_id}: {slot['name']} was optional, prompts without it are refused now"
            gone = [choice for choice in there.get("options", []) if choice not in slot.get("options", [])]
            if gone:
                yield f"{node_id}: {slot['name']} does not offer {', '.join(gone)} any more"
        for slot in new[node_id]["inputs"][len(before["inputs"]) :]:
            if not slot["optional"]:
                yield f"{node_id}: {slot['name']} is new and must be optional, or prompts without it are refused"


def test_saved_workflows_still_fit() -> None:
    broken = list(incompatibilities(recorded(), current()))
    assert not broken, "\n".join(broken)


def test_is_as_recorded() -> None:
    old, new = recorded(), current()
    if os.environ.get(RENEW) == "1" and not list(incompatibilities(old, new)):
        SCHEMA.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
        old = recorded()
    different = sorted(differences(old, new))
    assert not different, "\n".join([*different, HOW_TO_RENEW])
    assert list(old) == list(new), HOW_TO_RENEW


def test_a_changed_default_is_only_a_difference() -> None:
    old, new = recorded(), recorded()
    new["LongCatLatent"]["inputs"][2]["default"] = 97
    assert list(differences(old, new)) == ["LongCatLatent, inputs, length: default was 93, is 97"]
    assert list(incompatibilities(old, new)) == []


def test_what_breaks_workflows_is_told() -> None:
    old, new = recorded(), recorded()
    del new["LongCatJoin"]
    new["LongCatSampler"]["inputs"].insert(4, {"name": "noise", "type": "NOISE", "optional": False})
    new["LongCatSigmas"]["inputs"][2]["options"].remove("refine")
    new["LongCatDecode"]["inputs"].append({"name": "fps", "type": "FLOAT", "optional": False})
    new["LongCatLatent"]["inputs"][3]["optional"] = False
    broken = " ".join(incompatibilities(old, new))
    for said in (
        "LongCatJoin is gone",
        "LongCatSampler: inputs were",
        "LongCatSigmas: mode does not offer refine",
        "LongCatDecode: fps is new and must be optional",
        "LongCatLatent: batch_size was optional",
    ):
        assert said in broken
    assert "LongCatKVCache" not in broken
