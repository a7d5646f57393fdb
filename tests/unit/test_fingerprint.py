"""Fingerprints of what segments are made from, without any model."""

import itertools
import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_execution.graph import DynamicPrompt, NodeNotFoundError

from longcat_core.segments.contents import HEAD, WHOLE, file_digest
from longcat_core.segments.fingerprint import conditioning_digest, digest, frames_digest, graph_digest


def test_digest_of_frames() -> None:
    frames = torch.rand(5, 8, 8, 3)
    other = frames.clone()
    other[4, 7, 7, 2] += 1e-6
    assert frames_digest(None) is None
    assert frames_digest(frames) == frames_digest(frames.clone())
    assert frames_digest(frames[:, :, ::2]) == frames_digest(frames[:, :, ::2].contiguous())
    assert len({frames_digest(x) for x in (frames, other, frames[:4], frames.reshape(5, 4, 16, 3))}) == 4


GRAPH = {
    "1": {"class_type": "LongCatLoader", "inputs": {"folder": "official"}},
    "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "strength": 0.5}},
    "3": {"class_type": "Merge", "inputs": {"a": ["2", 0], "b": ["1", 0], "ratios": [1, 0]}},
}


@dataclass
class FakeGraph:
    """A prompt whose nodes declare nothing, never change and name no files, unless it is said."""

    nodes: dict[str, dict]
    default: dict[str, Any] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    def node(self, node_id: str) -> dict:
        return self.nodes[node_id]

    def defaults(self, class_type: str) -> dict:
        return self.default

    def file(self, class_type: str, name: str, value: str) -> str | None:
        return self.contents.get(value)

    def changed(self, node_id: str) -> Any:
        return self.answers.get(node_id, False)


def digest_of(graph: dict, link: Any, **known: Any) -> str:
    return graph_digest(FakeGraph(graph, **known), link)


def edited(edit: str, by: str) -> dict:
    """The graph with a text of its JSON replaced."""
    before = json.dumps(GRAPH)
    after = before.replace(edit, by)
    assert after != before
    return json.loads(after)


def test_graph_digest_does_not_depend_on_ids_and_order() -> None:
    renamed = edited('"1"', '"17"')
    shuffled = random.Random(0).sample(sorted(renamed.items()), len(renamed))
    assert digest_of(dict(shuffled), ["3", 0]) == digest_of(GRAPH, ["3", 0])


@pytest.mark.parametrize(
    ("edit", "by"),
    [
        ("official", "other"),
        ("0.5", "0.6"),
        ("LoraLoader", "OtherLoader"),
        ('["2", 0]', '["2", 1]'),
        ("[1, 0]", "[1, 1]"),
    ],
)
def test_graph_digest_covers_everything_upstream(edit: str, by: str) -> None:
    assert digest_of(edited(edit, by), ["3", 0]) != digest_of(GRAPH, ["3", 0])


def one_after_another(*nodes: tuple[str, dict]) -> tuple[dict, list]:
    """A chain of nodes behind a loader, and the link to its end."""
    graph = {"0": {"class_type": "Loader", "inputs": {"file": "model.safetensors"}}}
    for number, (kind, inputs) in enumerate(nodes, 1):
        linked = {name: [str(number - 1), 0] if value == "before" else value for name, value in inputs.items()}
        graph[str(number)] = {"class_type": kind, "inputs": linked}
    return graph, [str(len(nodes)), 0]


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        ("LongCatKVCache", "policy", ("gpu", "cpu")),
        ("LongCatBlockSparseAttention", "backend", ("flex", "gather")),
        ("CLIPLoader", "device", ("default", "cpu")),
    ],
)
def test_inputs_that_say_where_or_how_do_not_count(kind: str, name: str, values: tuple[str, str]) -> None:
    def found(node: str, value: str) -> str:
        return digest_of(*one_after_another((node, {"model": "before", name: value})))

    assert found(kind, values[0]) == found(kind, values[1])
    assert found("Other", values[0]) != found("Other", values[1])


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("TorchCompileModel", {"model": "before", "backend": "inductor"}),
        ("MultiGPU_WorkUnits", {"model": "before", "max_gpus": 2}),
        ("SelectModelDevice", {"model": "before", "device": "gpu:1"}),
        ("SelectCLIPDevice", {"clip": "before", "device": "cpu"}),
        ("SelectVAEDevice", {"vae": "before", "device": "gpu:1"}),
    ],
)
def test_nodes_that_say_where_or_how_do_not_count(kind: str, inputs: dict) -> None:
    assert digest_of(*one_after_another((kind, inputs))) == digest_of(*one_after_another())
    other = {name: "before" for name in inputs if inputs[name] == "before"}
    sampling = ("ModelSamplingSD3", {"model": "before", "shift": 7})
    assert digest_of(*one_after_another((kind, inputs), sampling)) == digest_of(*one_after_another(sampling))
    assert digest_of(*one_after_another(("Other", other))) != digest_of(*one_after_another())


def test_the_cache_counts_wherever_it_lies() -> None:
    """With it guidance scales by the generated frames only."""
    cached = one_after_another(("LongCatKVCache", {"model": "before", "policy": "auto"}))
    assert digest_of(*cached) != digest_of(*one_after_another())


def test_an_input_at_its_default_and_one_left_out_are_the_same() -> None:
    left_out, given, other = (
        digest_of(*one_after_another(("Loader2", {"model": "before", **inputs})), default={"dtype": "auto", "n": 2.0})
        for inputs in ({}, {"dtype": "auto", "n": 2}, {"dtype": "auto", "n": 3})
    )
    assert left_out == given != other


def test_two_texts_in_a_list_are_no_link() -> None:
    """Only a text and a number are."""
    names = digest_of(*one_after_another(("Selection", {"model": "before", "names": ["a", "b"]})))
    assert names != digest_of(*one_after_another(("Selection", {"model": "before", "names": ["a", "c"]})))


def test_a_link_to_a_node_that_is_not_there_is_cores_error() -> None:
    graph, end = one_after_another(("Sampling", {"model": ["gone", 0]}))
    comfy_graph = FakeGraph(graph)
    comfy_graph.node = DynamicPrompt(graph).get_node  # type: ignore[method-assign]
    with pytest.raises(NodeNotFoundError, match="Node gone not found"):
        graph_digest(comfy_graph, end)


def test_files_count_by_their_content_and_not_by_their_name() -> None:
    """Wherever the name stands: in an input, in a part of one, or in a primitive node that is linked to it."""

    def found(name: str, content: str) -> list[str]:
        primitive = {"class_type": "PrimitiveString", "inputs": {"value": name}}
        loaders: list[Any] = [name, {"on": True, "lora": name}, [name, "other"], ["text", 0]]
        graphs = [{"text": primitive, "1": {"class_type": "Loader", "inputs": {"lora": value}}} for value in loaders]
        return [digest_of(graph, ["1", 0], contents={name: content}) for graph in graphs]

    before = found("a.safetensors", "content")
    assert before == found("elsewhere/b.safetensors", "content")
    assert not set(before) & set(found("a.safetensors", "other content"))
    assert before[0] == before[3]


def test_what_a_node_says_of_itself_counts() -> None:
    graph, end = one_after_another(("TextFromFile", {"model": "before"}))
    said = [digest_of(graph, end, answers={"1": answer}) for answer in (["one"], ["one"], ["two"], False)]
    assert said[0] == said[1]
    assert len(set(said)) == 3


@pytest.mark.parametrize("answer", [float("nan"), [float("nan")], [object()]])
def test_a_node_that_always_changes_is_never_the_same(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    graph, end = one_after_another(("RandomPrompt", {"model": "before"}))
    assert digest_of(graph, end, answers={"1": answer}) != digest_of(graph, end, answers={"1": answer})
    assert "what node RandomPrompt does cannot be compared with the last time" in caplog.text


def conditioning(value: float = 1.0, **options: Any) -> list:
    return [[torch.full((1, 4, 8), value, dtype=torch.bfloat16), {"attention_mask": torch.ones(1, 4), **options}]]


def test_conditioning_counts_by_its_tensors_and_options() -> None:
    """And not by the nodes that made it, unless an option is an object."""
    graphs = [FakeGraph({"1": {"class_type": "Encode", "inputs": {"text": text}}}) for text in ("a cat", "a dog")]

    def found(graph: FakeGraph, what: list) -> str:
        return conditioning_digest(what, graph, ["1", 0])

    assert found(graphs[0], conditioning()) == found(graphs[1], conditioning())
    others = [conditioning(2.0), conditioning(area=(1, 2)), conditioning(attention_mask=torch.zeros(1, 4))]
    assert len({found(graphs[0], what) for what in [conditioning(), *others, conditioning() * 2]}) == 5
    hooked = [found(graph, conditioning(hooks=object())) for graph in (graphs[0], graphs[0], graphs[1])]
    assert hooked[0] == hooked[1] != hooked[2]


@pytest.fixture(params=[1000, WHOLE + HEAD], ids=["small", "large"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(random.Random(0).randbytes(request.param))
    return path


def test_a_copy_of_a_file_is_the_same_and_another_is_not(weights: Path) -> None:
    before = file_digest(weights)
    copied = shutil.copy(weights, weights.with_name("copy.bin"))
    assert file_digest(Path(copied)) == before
    size = weights.stat().st_size
    for changed in (0, size // 2 - size // 2 % 4096 if size < WHOLE else HEAD, size - 1):
        content = bytearray(weights.read_bytes())
        content[changed] ^= 1
        other = weights.with_name("other")
        other.write_bytes(content)
        assert file_digest(other) != before
    longer = weights.with_name("longer")
    longer.write_bytes(weights.read_bytes() + b"0")
    assert file_digest(longer) != before


def test_a_file_that_was_replaced_is_noticed_though_its_times_are_not_new(weights: Path) -> None:
    """A copy that keeps the time of the last change, as cp -p and many downloaders make it."""
    before, times = file_digest(weights), weights.stat()
    weights.write_bytes(random.Random(1).randbytes(times.st_size))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(weights) != before


def test_a_file_that_stays_is_read_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file_digest(weights)
    monkeypatch.delattr(Path, "open")
    assert file_digest(weights) == before


def test_graph_digest_tells_outputs_apart_and_ignores_what_is_not_upstream() -> None:
    assert digest_of(GRAPH, ["1", 0]) != digest_of(GRAPH, ["1", 1])
    assert digest_of(edited("0.5", "0.6"), ["1", 0]) == digest_of(GRAPH, ["1", 0])


def test_graph_digest_of_a_deep_diamond_is_fast() -> None:
    """Every node is linked twice: without remembering them this would be 2 ** 60 visits."""
    graph = {"0": {"class_type": "Loader", "inputs": {}}}
    for below, above in itertools.pairwise(range(60)):
        graph[str(above)] = {"class_type": "Mix", "inputs": {"a": [str(below), 0], "b": [str(below), 0]}}
    assert len(digest_of(graph, ["59", 0])) == 64


def test_digest_tells_values_apart() -> None:
    values = [(1, "2"), ("1", 2), (12,), ("12",), ([1], "2"), ({"a": 1}, "2")]
    assert len({digest(*value) for value in values}) == len(values)
