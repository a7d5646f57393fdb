import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longcat_core.weights import safetensors_file, safetensors_writer
from longcat_core.weights.advice import GET_AGAIN
from longcat_core.weights.safetensors_file import Reader, TensorType
from longcat_core.weights.safetensors_writer import Plan

SHAPES: dict[str, tuple[int, ...]] = {
    "matrix": (5, 3),
    "scalar": (),
    "empty": (0, 4),
    "one": (1,),
    "\u540d.weight": (2, 3, 2),
}
GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [8], "data_offsets": [24, 32]},
}
DATA = bytes(range(32))


class Rows:
    """A target of one tensor, whose rows come one at a time; it can stop before a row."""

    def __init__(self, name: str, tensor: torch.Tensor, stop_before: int | None = None) -> None:
        self.name, self.tensor, self.stop_before = name, tensor, stop_before
        self.tensors = {name: TensorType(tensor.dtype, tuple(tensor.shape))}

    def chunks(self) -> Iterator[tuple[str, torch.Tensor]]:
        for number, row in enumerate(self.tensor.split(1) if self.tensor.ndim else [self.tensor]):
            if number == self.stop_before:
                raise KeyboardInterrupt
            yield self.name, row


def numbers(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor of random bytes."""
    kind = TensorType(dtype, shape)
    generator = torch.Generator().manual_seed(seed)
    highest = 2 if dtype == torch.bool else 256
    return torch.randint(highest, (kind.nbytes,), generator=generator).to(torch.uint8).view(dtype).reshape(shape)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """A tensor of each dtype that is written and each shape."""
    return {
        f"{name}.{shape}": numbers(dtype, size, seed)
        for seed, (name, dtype) in enumerate(safetensors_file.DTYPES.items())
        for shape, size in SHAPES.items()
    }


def plan_of(tensors: dict[str, torch.Tensor], identity: str = "") -> Plan:
    return Plan([Rows(name, tensor) for name, tensor in tensors.items()], identity)


def ignore(_: int) -> None:
    """Progress that nobody watches."""


# --- reading ----------------------------------------------------------------------------------------------------------


def file_of(path: Path, header: Any, data: bytes = DATA) -> Path:
    """A file with a header, given as JSON, text or bytes."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def changed(**entry: Any) -> dict[str, Any]:
    """The good header with a change in its first tensor."""
    return {**GOOD, "a": {**GOOD["a"], **entry}}


DAMAGE: dict[str, tuple[Any, bytes, str]] = {
    "a hole": (changed(data_offsets=[0, 20], shape=[5]), DATA, "b has 4 bytes before it"),
    "a hole at the start": (changed(data_offsets=[4, 28]), DATA[:-4], "a has 4 bytes before it"),
    "an overlap": (changed(data_offsets=[0, 28], shape=[7]), DATA, "b overlaps"),
    "the same place twice": ({**GOOD, "c": GOOD["a"]}, DATA, "overlaps"),
    "data cut off": (GOOD, DATA[:-1], "take 32 bytes where the file has 31"),
    "data too long": (GOOD, DATA + b"x", "take 32 bytes where the file has 33"),
    "no data": (GOOD, b"", "has 0"),
    "the end before the start": (changed(data_offsets=[24, 0]), DATA, "impossible data_offsets"),
    "negative offsets": (changed(data_offsets=[-24, 0]), DATA, "impossible data_offsets"),
    "one offset": (changed(data_offsets=[24]), DATA, "impossible data_offsets"),
    "offsets as words": (changed(data_offsets=["0", "24"]), DATA, "impossible data_offsets"),
    "offsets behind the end": (changed(data_offsets=[10**18, 10**18 + 24]), DATA, "bytes before it"),
    "a shape that is too large": (changed(shape=[2, 4]), DATA, "takes 24 bytes where 32 are needed"),
    "a huge shape": (changed(shape=[2**62, 2**62]), DATA, "takes 24 bytes"),
    "a negative shape": (changed(shape=[-2, -3]), DATA, "impossible shape"),
    "a shape with a fraction": (changed(shape=[2.0, 3.0]), DATA, "impossible shape"),
    "a shape with truth": (changed(shape=[True, 6]), DATA, "impossible shape"),
    "a shape that is a number": (changed(shape=6), DATA, "impossible shape"),
    "an unknown dtype": (changed(dtype="F33"), DATA, "unknown dtype F33"),
    "a dtype that is a number": (changed(dtype=32), DATA, "unknown dtype 32"),
    "a dtype of another size": (changed(dtype="F64"), DATA, "where 48 are needed"),
    "a tensor without shape": ({**GOOD, "a": {"dtype": "F32", "data_offsets": [0, 24]}}, DATA, "no dtype, shape"),
    "a tensor that is a list": ({**GOOD, "a": []}, DATA, "no dtype, shape"),
    "metadata that are numbers": ({**GOOD, "__metadata__": {"format": 1}}, DATA, "metadata"),
    "metadata that are a list": ({**GOOD, "__metadata__": ["pt"]}, DATA, "metadata"),
    "a tensor twice": ('{"a": {}, "b": {}, "a": {}}', DATA, "has a twice"),
    "a dtype twice": ('{"a": {"dtype": "U8", "dtype": "I8"}}', DATA, "has dtype twice"),
    "a list": ("[]", DATA, "a list instead of an object"),
    "no JSON": (json.dumps(GOOD)[:-1], DATA, "not JSON"),
    "no header": ("", DATA, "not JSON"),
    "no UTF-8": (b'{"\xff": {}}', DATA, "not JSON"),
    "endless lists": ("[" * 200_000, DATA, "not JSON"),
    "a number of 5000 digits": ('{"a": ' + "9" * 5000 + "}", DATA, "digits"),
}


@pytest.mark.parametrize(("header", "data", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    path = file_of(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ValueError, match=said) as caught:
        safetensors_file.read_header(path)
    message = str(caught.value)
    assert str(path) in message
    assert GET_AGAIN in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes long, too short"),
        (b"1234567", "7 bytes long"),
        (b"\xff" * 100, "where 100,000,000 are allowed"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "100,000,001 bytes"),
        ((100_000_000).to_bytes(8, "little") + b"{}", "10 bytes long but announces"),
        (b"version https://git-lfs.github.com/spec/v1\n", "are allowed"),
        (b"<!DOCTYPE html><html></html>", "are allowed"),
    ],
)
def test_files_without_a_header(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        safetensors_file.read_header(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ValueError, match="missing or no file"):
            safetensors_file.read_header(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = file_of(tmp_path / "whole", GOOD)
    safetensors_file.read_header(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged, incomplete"):
            safetensors_file.read_header(path)


def test_reads_what_the_library_writes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"format": "pt", "model": "x"})
    reader = Reader([path])
    assert reader.metadata == {"format": "pt", "model": "x"}
    assert reader.tensors == {name: TensorType(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        assert same(reader.tensor(name), tensor)
        reader.close()
        if tensor.ndim and len(tensor) > 1:
            assert same(reader.rows(name, 1, 2), tensor[1:2])
    reader.close()


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    kinds = (x.dtype, x.shape) == (y.dtype, y.shape)
    return kinds and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    for name in "ab":
        save_file({name: torch.ones(2)}, tmp_path / name)
    assert Reader([tmp_path / "a", tmp_path / "b"]).tensors.keys() == {"a", "b"}
    save_file({"a": torch.ones(2)}, tmp_path / "b")
    with pytest.raises(ValueError, match="both hold a"):
        Reader([tmp_path / "a", tmp_path / "b"])


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file({"a": torch.ones(100)}, path)
    reader = Reader([path])
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(ValueError, match="x became shorter"):
        reader.tensor("a")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_library(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    progress: list[int] = []
    plan = plan_of(tensors)
    safetensors_writer.write(tmp_path / "ours", plan, progress.append)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (tmp_path / "ours").stat().st_size == plan.nbytes
    assert sum(progress) == sum(tensor.nbytes for tensor in tensors.values())
    assert all(same(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "ours").items())


@pytest.mark.parametrize(("sync_bytes", "expected"), [(1, 20), (100, 11), (safetensors_writer.SYNC_BYTES, 0)])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_bytes: int, expected: int
) -> None:
    """Stopped before every row of every tensor, and continued from the last tensor that is safe."""
    monkeypatch.setattr(safetensors_writer, "SYNC_BYTES", sync_bytes)
    tensors = {f"{i}": numbers(torch.float32 if i % 2 else torch.int8, (i + 1, 7), i) for i in range(6)}
    safetensors_writer.write(tmp_path / "whole", plan_of(tensors), ignore)
    whole = (tmp_path / "whole").read_bytes()
    num_resumed = 0
    for stopped, tensor in tensors.items():
        for row in range(len(tensor)):
            path = tmp_path / f"{stopped}.{row}"
            targets = [Rows(name, other, row if name == stopped else None) for name, other in tensors.items()]
            with pytest.raises(KeyboardInterrupt):
                safetensors_writer.write(path, Plan(targets, ""), ignore)
            assert not path.exists()
            assert not safetensors_writer.is_finished(path, plan_of(tensors))
            progress: list[int] = []
            done = safetensors_writer.bytes_done(path, plan_of(tensors))
            safetensors_writer.write(path, plan_of(tensors), progress.append)
            assert progress[0] == done
            assert sum(progress) == sum(tensor.nbytes for tensor in tensors.values())
            assert path.read_bytes() == whole
            num_resumed += bool(done)
    assert num_resumed == expected


def test_a_finished_file_is_known_until_it_is_forgotten(tmp_path: Path) -> None:
    plan, path = plan_of({"a": torch.ones(3)}), tmp_path / "x"
    safetensors_writer.write(path, plan, ignore)
    assert safetensors_writer.is_finished(path, plan)
    assert not safetensors_writer.is_finished(path, plan_of({"a": torch.ones(3)}, "other sources"))
    assert not safetensors_writer.is_finished(path, plan_of({"b": torch.ones(3)}))
    safetensors_writer.forget(path)
    safetensors_writer.forget(path)
    assert not safetensors_writer.is_finished(path, plan)
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_another_plan_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_writer, "SYNC_BYTES", 1)
    old = {"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)}
    new = {"a": torch.ones(4, 2), "b": torch.ones(4, 2)}
    path = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        safetensors_writer.write(path, Plan([Rows("a", old["a"]), Rows("b", old["b"], 2)], "old"), ignore)
    assert safetensors_writer.bytes_done(path, plan_of(old, "old")) == old["a"].nbytes
    assert safetensors_writer.bytes_done(path, plan_of(new, "new")) == 0
    safetensors_writer.write(path, plan_of(new, "new"), ignore)
    assert all(same(tensor, new[name]) for name, tensor in load_file(path).items())


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    class Bad(Rows):
        def chunks(self) -> Iterator[tuple[str, torch.Tensor]]:
            yield self.name, self.tensor[:1]
            raise ValueError("a has numbers that are not finite")

    with pytest.raises(ValueError, match=r"x was not written: a has numbers"):
        safetensors_writer.write(tmp_path / "x", Plan([Bad("a", torch.ones(3))], ""), ignore)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs hardware: a system with /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors_writer.part_of(path).symlink_to("/dev/full")
    with pytest.raises(ValueError, match="disk is full") as caught:
        safetensors_writer.write(path, plan_of({"a": torch.ones(3)}), ignore)
    assert str(path) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["header", "data", "fsync", "replace"])
def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    failing: dict[str, Callable[[], None]] = {
        "data": lambda: monkeypatch.setattr(safetensors_writer, "_write_target", fail),
        "header": lambda: monkeypatch.setattr(Path, "write_bytes", fail),
        "fsync": lambda: monkeypatch.setattr(os, "fsync", fail),
        "replace": lambda: monkeypatch.setattr(Path, "replace", fail),
    }
    failing[place]()
    with pytest.raises(ValueError, match=r"could not be written: .*Input/output error"):
        safetensors_writer.write(tmp_path / "x", plan_of({"a": torch.ones(3)}), ignore)
    assert not list(tmp_path.iterdir())


def test_small_files_are_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "config.json"
    safetensors_writer.write_small(path, b"{}")
    safetensors_writer.write_small(path, b"[]")
    assert path.read_bytes() == b"[]"

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ValueError, match="disk is full"):
        safetensors_writer.write_small(path, b"{}")
    assert path.read_bytes() == b"[]"
    assert list(path.parent.iterdir()) == [path]
