"""Storyboards through a real server (killed, restarted, cancelled, with wrong files), and segment by segment."""

import asyncio
import itertools
import json
import shutil
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import av
import comfy.model_management
import comfy.utils
import nodes as core_nodes
import numpy as np
import psutil
import pytest
import torch
from inprocess import find_node, node
from PIL import Image
from served import (
    Prompt,
    frames_of,
    latents,
    output,
    same_video,
    sampled,
    samples_of,
    samplings,
    samplings_and_log,
    state,
)
from torch import Tensor

from longcat_core import schedule
from longcat_core.segments import files, plan
from longcat_core.segments.loop import make_video

PACK = Path(__file__).resolve().parents[2]
STORYBOARD = "storyboard"
FIRST_STEPS, LATER_STEPS = 3, len(schedule.sigmas("enhance_hf", 3)) - 1  # model calls of 3 steps: base, enhance_hf
LENGTH, OVERLAP = 17, 5
OVERLAP_LATENTS = 2
TEXT_EVENT = 3  # how a binary websocket message with a progress text starts (ComfyUI's protocol.py)
QUICK = {"mode": "base", "steps": 1, "cfg": 1.0}  # one model call for every segment
FOUR = "a cat\na dog\na bird\na fish"
Loaded = tuple[Any, Any, Any]


def story(name: str, **changes: Any) -> Prompt:
    """A prompt with a storyboard of four segments, whose files are `longcat/<name>_*`."""
    inputs = {
        **{"model": ["cache", 0], "clip": ["loader", 1], "vae": ["loader", 2], "prompts": FOUR, "negative": "blurry"},
        **{"segments": 0, "width": 64, "height": 64, "length": LENGTH, "num_cond_frames": OVERLAP, "seed": 3},
        **{"seed_policy": "increment", "steps": 3, "cfg": 4.0, "mode": "enhance_hf"},
        **{"filename_prefix": f"longcat/{name}"},
    }
    return {
        "loader": {"class_type": "LongCatLoader", "inputs": {"folder": "tiny-random"}},
        "cache": {"class_type": "LongCatKVCache", "inputs": {"model": ["loader", 0], "policy": "auto"}},
        STORYBOARD: {"class_type": "LongCatStoryboard", "inputs": inputs | changes},
    }


def with_outputs(prompt: Prompt) -> Prompt:
    """Save the frames as PNG files and as a video, too."""
    frames = {"images": [STORYBOARD, 0]}
    return prompt | {
        "png": {"class_type": "SaveImage", "inputs": frames | {"filename_prefix": "frames/story"}},
        "create": {"class_type": "CreateVideo", "inputs": frames | {"fps": 15.0}},
        "save": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["create", 0], "filename_prefix": "video/story", "format": "auto", "codec": "auto"},
        },
    }


def failure(server: Any, prompt: Prompt) -> tuple[str, list[int]]:
    """The error message that a prompt ends with in the history, and what it sampled until then."""
    events: list[Any] = []
    kind, error = server.run(prompt, events.append)["status"]["messages"][-1]
    assert kind == "execution_error"
    assert error["node_type"] == "LongCatStoryboard"
    return error["exception_message"], samplings(events)


def pictures(server: Any) -> np.ndarray:
    """Frames `[F, H, W, 3]` that SaveImage wrote."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(output(server, "frames").glob("story_*.png"))])


@dataclass(frozen=True)
class Resumed:
    """What there was when the server was killed, and what the next one did."""

    killed: list[tuple[str, int, bytes]]
    after: list[tuple[str, int, bytes]]
    samplings: list[int]
    log: str
    server: Any


@pytest.fixture(scope="module")
def uninterrupted(server: Any) -> Any:
    """A server that has made the storyboard in one go."""
    assert sampled(server, with_outputs(story("story"))) == [FIRST_STEPS, LATER_STEPS, LATER_STEPS, LATER_STEPS]
    return server


@pytest.fixture(scope="module")
def resumed(start: Any, uninterrupted: Any) -> Resumed:
    """The same storyboard, its server killed in segment 3 and restarted."""
    from host.client import ServerError

    prompt = with_outputs(story("story"))
    with start() as server:
        events: list[Any] = []

        def kill_in_the_third(event: Any) -> None:
            events.append(event)
            if len(samplings(events)) == 3:
                server.process.kill()

        with pytest.raises(ServerError):
            server.run(prompt, kill_in_the_third)
    folder = output(server, "longcat")
    killed = state(sorted(folder.iterdir()))
    # As if it had been killed while it wrote segment 3.
    third = latents(uninterrupted, "story")[2]
    with pytest.raises(KeyboardInterrupt), files.completed(folder / third.name) as temporary:
        raise KeyboardInterrupt
    temporary.write_bytes(third.read_bytes()[:1000])

    with start() as server:
        begun = samplings_and_log(server, prompt)
    assert temporary.read_bytes() == third.read_bytes()[:1000]
    temporary.unlink()
    return Resumed(killed, state(sorted(folder.iterdir())), *begun, server)


def test_killed_in_the_third_segment_it_goes_on_with_it(resumed: Resumed) -> None:
    names = [name for name, _, _ in resumed.killed]
    assert [(name[:9], name[-4:]) for name in names] == [
        *(("story_001", "tent"), ("story_001", ".mp4"), ("story_002", "tent"), ("story_002", ".mp4"))
    ]
    assert resumed.samplings == [LATER_STEPS, LATER_STEPS]
    assert "LongCat Storyboard: 2 of 4 segments are to be made." in resumed.log
    assert [entry for entry in resumed.after if entry[0] in names] == resumed.killed
    assert len(resumed.after) == 8  # but for what was half written when it was killed, no temporary file is left


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(resumed: Resumed, uninterrupted: Any) -> None:
    one, other = latents(uninterrupted, "story"), latents(resumed.server, "story")
    assert [path.name for path in one] == [path.name for path in other]
    assert len(one) == 4
    for path, same in zip(one, other, strict=True):
        assert torch.equal(samples_of(path), samples_of(same))
    frames = pictures(uninterrupted)
    assert frames.shape == (LENGTH + 3 * (LENGTH - OVERLAP), 64, 64, 3)
    assert frames.std() > 10
    assert np.array_equal(frames, pictures(resumed.server))
    for name in [f"longcat/{path.stem}.mp4" for path in one] + ["video/story_00001_.mp4"]:
        assert same_video(frames_of(output(uninterrupted, name)), frames_of(output(resumed.server, name)))
    first, second, *_ = (frames_of(path.with_suffix(".mp4")) for path in one)
    assert not same_video(first[-len(second) :], second)


def test_segments_share_their_overlap_exactly(uninterrupted: Any) -> None:
    segments = [samples_of(path) for path in latents(uninterrupted, "story")]
    for one, following in itertools.pairwise(segments):
        assert torch.equal(following[:, :, :OVERLAP_LATENTS], one[:, :, -OVERLAP_LATENTS:])
        assert not torch.equal(following[:, :, OVERLAP_LATENTS:], one[:, :, OVERLAP_LATENTS:])


def test_segments_videos_are_the_parts_of_the_whole(uninterrupted: Any) -> None:
    parts = [frames_of(path.with_suffix(".mp4")) for path in latents(uninterrupted, "story")]
    assert [len(part) for part in parts] == [LENGTH, *[LENGTH - OVERLAP] * 3]
    frames, whole = np.concatenate(parts).astype(np.float32), pictures(uninterrupted)
    nearest = [np.abs(whole - frame).mean((1, 2, 3)).argmin() for frame in frames]
    assert nearest == [*range(len(whole))]


@pytest.fixture(scope="module")
def restarted(start: Any, resumed: Resumed) -> Iterator[Any]:
    """A server started after the storyboard was finished, whose C library gives freed memory back at once."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
            environment.setenv(name, str(2**20))
        with start() as server:
            yield server


def test_finished_storyboard_samples_nothing(restarted: Any, resumed: Resumed) -> None:
    """One of the videos is gone, as if the server had been killed between a latent and its video."""
    first = pictures(restarted)
    lost = latents(restarted, "story")[1].with_suffix(".mp4")
    frames = frames_of(lost)
    lost.unlink()
    calls, log = samplings_and_log(restarted, with_outputs(story("story")))
    assert calls == []
    assert "LongCat Storyboard: 0 of 4 segments are to be made." in log
    both = pictures(restarted)
    assert len(both) == 2 * len(first)
    assert np.array_equal(both[len(first) :], first)
    assert same_video(frames_of(lost), frames)
    kept = [entry for entry in state(sorted(lost.parent.iterdir())) if entry[0] != lost.name]
    assert kept == [entry for entry in resumed.after if entry[0] != lost.name]


class watched_memory:  # noqa: N801 - reads as a function
    """The largest resident memory of a process while each segment was made, in bytes."""

    def __init__(self, process_id: int) -> None:
        self.process = psutil.Process(process_id)
        self.peaks: dict[int, int] = {}
        self.segment = 0
        self.finished = threading.Event()

    def __enter__(self) -> "watched_memory":
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.finished.wait(0.01):
            segment, now = self.segment, self.process.memory_info().rss
            self.peaks[segment] = max(self.peaks.get(segment, 0), now)

    def on_event(self, event: Any) -> None:
        self.segment += len(samplings([event]))


def test_memory_grows_by_the_frames_only(restarted: Any, report: list[str]) -> None:
    """A second copy of the frames, or anything else of their size that a segment leaves behind, would be too much."""
    size, overlap = 112, 1
    prompt = story("long", prompts="a cat", segments=12, width=size, height=size, num_cond_frames=overlap, **QUICK)
    with watched_memory(restarted.process.pid) as memory:
        entry = restarted.run(prompt, memory.on_event)
    assert entry["status"]["status_str"] == "success"
    assert len(latents(restarted, "long")) == 12
    frames = 10 * (LENGTH - overlap) * size * size * 3 * 4
    second, sixth, last = (memory.peaks[number] for number in (2, 6, 12))
    report.append(
        f"storyboard of 12 segments of {size} x {size}, peak memory of the server at segments 2, 6, 12: "
        f"{second >> 20}, {sixth >> 20}, {last >> 20} MiB; the frames made from 2 to 12 are {frames / 2**20:.0f} MiB"
    )
    assert last - second < 1.5 * frames


def test_cancelled_in_the_second_segment_the_first_is_there(server: Any) -> None:
    events: list[Any] = []

    def cancel(event: Any) -> None:
        events.append(event)
        if len(samplings(events)) == 2 and event.data.get("value") == 1:
            server.interrupt()

    prompt = story("cancelled", prompts="a cat\na dog")
    entry = server.run(prompt, cancel)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    (first,) = latents(server, "cancelled")
    found = {path.name for path in output(server, "longcat").iterdir() if "cancelled" in path.name}
    assert found == {first.name, first.with_suffix(".mp4").name}
    with av.open(str(first.with_suffix(".mp4"))) as container:
        assert container.streams.video[0].average_rate == 15
    assert frames_of(first.with_suffix(".mp4")).shape == (LENGTH, 64, 64, 3)
    assert sampled(server, prompt) == [LATER_STEPS]


def heard(server: Any, prompt: Prompt) -> list[tuple[str, str | int]]:
    """What a client is told while a prompt runs: progress texts and steps, each with the node it belongs to."""

    async def listen() -> list[tuple[str, str | int]]:
        said: list[tuple[str, str | int]] = []
        url = f"ws://{server.address}/ws?clientId={server.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as websocket:
            server.post_prompt(prompt)
            async for message in websocket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    kind, length = struct.unpack(">II", message.data[:8])
                    if kind == TEXT_EVENT:
                        said.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
                    continue
                event = json.loads(message.data)
                if event["type"] == "progress":
                    said.append((event["data"]["node"], event["data"]["value"]))
                if event["type"] == "executing" and event["data"]["node"] is None:
                    return said
        raise AssertionError("the server closed the connection")

    return asyncio.run(asyncio.wait_for(listen(), 120))


def test_segments_and_steps_are_shown(server: Any) -> None:
    first, later = range(1, FIRST_STEPS + 1), range(1, LATER_STEPS + 1)
    expected = ["Segment 1 of 2", *first, "Segment 2 of 2", *later]
    assert heard(server, story("shown", prompts="a cat\na dog")) == [(STORYBOARD, said) for said in expected]


def test_another_third_prompt_keeps_the_first_two_segments(server: Any) -> None:
    assert len(sampled(server, story("third", **QUICK))) == 4
    before = state(latents(server, "third"))
    assert len(sampled(server, story("third", prompts="a cat\na dog\na cow\na fish", **QUICK))) == 2
    after = state(latents(server, "third"))
    assert [entry for entry in after if entry in before] == before
    assert [name[:9] for name, *_ in after] == [f"third_00{number}" for number in (1, 2, 3, 3, 4, 4)]


def test_one_prompt_for_all_segments_and_seed_policies(server: Any) -> None:
    """Both policies have the first segment in common."""
    assert len(sampled(server, story("one", prompts="a cat", segments=3, **QUICK))) == 3
    counted_up = latents(server, "one")
    assert len(sampled(server, story("one", prompts="a cat", segments=3, seed_policy="same", **QUICK))) == 2
    same = [path for path in latents(server, "one") if path not in counted_up]
    assert [path.name[:7] for path in same] == ["one_002", "one_003"]
    for path, other in zip(counted_up[1:], same, strict=True):
        assert not torch.equal(samples_of(path), samples_of(other))


def test_start_image(server: Any) -> None:
    """It is kept exactly; the first segment is no continuation and has the plain schedule."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(image).save(server.base_directory / "input" / "start.png")
    prompt = story("image", prompts="a cat\na dog", frames=["image", 0]) | {
        "image": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["loader", 2]}},
        "keep": {"class_type": "SaveLatent", "inputs": {"samples": ["encode", 0], "filename_prefix": "given/image"}},
    }
    assert sampled(server, prompt) == [FIRST_STEPS, LATER_STEPS]
    given = samples_of(output(server, "given", "image_00001_.latent"))
    first, second = map(samples_of, latents(server, "image"))
    assert given.shape == (1, 16, 1, 8, 8)
    assert torch.equal(first[:, :, :1], given)
    assert torch.equal(second[:, :, :OVERLAP_LATENTS], first[:, :, -OVERLAP_LATENTS:])
    videos = [frames_of(path.with_suffix(".mp4")) for path in latents(server, "image")]
    assert [len(frames) for frames in videos] == [LENGTH, LENGTH - OVERLAP]


def test_start_video_is_continued_from_its_end(uninterrupted: Any) -> None:
    server = uninterrupted
    shutil.copy(latents(server, "story")[0].with_suffix(".mp4"), server.base_directory / "input" / "start.mp4")
    last = {"image": ["parts", 0], "batch_index": LENGTH - 13, "length": 13}
    prompt = story("video", prompts="a cat\na dog", frames=["parts", 0], num_cond_frames=13) | {
        "video": {"class_type": "LoadVideo", "inputs": {"file": "start.mp4"}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}},
        "last": {"class_type": "ImageFromBatch", "inputs": last},
        "encode": {"class_type": "VAEEncode", "inputs": {"pixels": ["last", 0], "vae": ["loader", 2]}},
        "keep": {"class_type": "SaveLatent", "inputs": {"samples": ["encode", 0], "filename_prefix": "given/video"}},
    }
    assert sampled(server, prompt) == [LATER_STEPS, LATER_STEPS]
    given = samples_of(output(server, "given", "video_00001_.latent"))
    first, second = map(samples_of, latents(server, "video"))
    assert given.shape == (1, 16, 4, 8, 8)
    assert torch.equal(first[:, :, :4], given)
    assert torch.equal(second[:, :, :4], first[:, :, -4:])
    assert [len(frames_of(path.with_suffix(".mp4"))) for path in latents(server, "video")] == [LENGTH, LENGTH - 13]


def test_condition_frames_are_rounded_and_that_is_logged(uninterrupted: Any) -> None:
    """8 is 5: the segments that are there are used."""
    calls, log = samplings_and_log(uninterrupted, story("story", num_cond_frames=8))
    assert calls == []
    assert "num_cond_frames must be 4n+1; 8 was rounded to 5" in log
    assert "LongCat Storyboard: 0 of 4 segments are to be made." in log


def two_segments(name: str, second: str, segments: int = 0) -> Prompt:
    """A quick storyboard; `segments` 2 is 0 said otherwise, and ComfyUI does not take its result from memory."""
    return story(name, prompts=f"a cat\n{second}", segments=segments, **QUICK)


def test_segment_of_other_inputs_under_a_wrong_name(server: Any) -> None:
    """Nothing is overwritten; when it is moved away, the run goes on."""
    sampled(server, two_segments("wrong", "a dog"))
    before = latents(server, "wrong")
    sampled(server, two_segments("wrong", "a bird"))
    (bird,) = (path for path in latents(server, "wrong") if path not in before)
    dog, content = before[1], bird.read_bytes()
    bird.replace(dog)
    said, calls = failure(server, two_segments("wrong", "a dog", segments=2))
    assert f"{dog.name} holds a segment of other inputs: it was renamed or copied here." in said
    assert calls == []
    assert dog.read_bytes() == content
    dog.unlink()
    assert sampled(server, two_segments("wrong", "a dog", segments=2)) == [1]


def test_a_node_before_the_model_that_has_changed_is_noticed(server: Any) -> None:
    """It has the same inputs each time, and gives the loader another value."""
    text = server.base_directory / "input" / "dtype.txt"
    prompt = two_segments("changed", "a dog")
    prompt["dtype"] = {"class_type": "TestTextOfFile", "inputs": {"name": text.name}}
    prompt["loader"]["inputs"]["weight_dtype"] = ["dtype", 0]
    for dtype, calls in [("default", [1, 1]), ("fp8_e4m3fn", [1, 1]), ("default", [])]:
        text.write_text(dtype)
        assert sampled(server, prompt) == calls


def test_damaged_segment(server: Any) -> None:
    sampled(server, two_segments("damaged", "a dog"))
    (first, second) = latents(server, "damaged")
    before, samples = state([first]), samples_of(second)
    second.write_bytes(second.read_bytes()[:-100])
    said, calls = failure(server, two_segments("damaged", "a dog", segments=2))
    assert f"{second.name} is damaged" in said
    assert "Delete it; its segment is then made again." in said
    assert calls == []
    second.unlink()
    assert sampled(server, two_segments("damaged", "a dog", segments=2)) == [1]
    assert torch.equal(samples_of(second), samples)
    assert state([first]) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": " \n "}, "prompts is empty. Write one prompt per line"),
        ({"segments": 3}, "There are 4 prompts (lines) for 3 segments."),
        ({"num_cond_frames": 17}, "17 condition frames leave nothing to generate in a video of 17 frames."),
        ({"num_cond_frames": 0}, "num_cond_frames is 0; it must be from 1 to"),
        ({"width": 70, "length": 18}, "width must be a multiple of 16 (use 64 or 80), it is 70; length must be 4n+1"),
        ({"mode": "distill", "steps": 60}, "the distilled schedule has 50 sigmas"),
        ({"mode": "refine"}, "mode is 'refine'; it must be one of enhance_hf, base, distill"),
        ({"steps": 0}, "steps is 0; it must be from 1 to 1000"),
        ({"condition_noise": 0.9}, "condition_noise"),
        ({"seed_policy": "random"}, "seed_policy"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(server: Any, changes: dict, said: str) -> None:
    from host.client import PromptRejected

    with pytest.raises(PromptRejected) as refusal:
        server.post_prompt(story("refused", **changes))
    assert said in str(refusal.value)


def linked(name: str, **values: float) -> Prompt:
    """A storyboard with inputs from other nodes, whose values are known only when it runs."""
    kinds = {int: "PrimitiveInt", float: "PrimitiveFloat"}
    numbers = {key: {"class_type": kinds[type(value)], "inputs": {"value": value}} for key, value in values.items()}
    return story(name, prompts="a cat\na dog", **(QUICK | {key: [key, 0] for key in values})) | numbers


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_cond_frames": 17}, "17 condition frames leave nothing to generate"),
        ({"num_cond_frames": 0}, "num_cond_frames is 0; it must be from 1 to"),
        ({"segments": -1}, "segments is -1; it must be from 0 to 1000"),
        ({"length": 18}, "length must be 4n+1 (use 17 or 21), it is 18"),
    ],
)
def test_linked_values_are_checked_before_the_first_segment(server: Any, values: dict, said: str) -> None:
    message, calls = failure(server, linked("unmade", **values))
    assert said in message
    assert calls == []
    assert latents(server, "unmade") == []


def test_linked_length_is_not_taken_for_a_short_one(server: Any) -> None:
    assert len(sampled(server, linked("linked", length=LENGTH, num_cond_frames=13))) == 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("cfg", -3.0, "cfg is -3.0; it must be from 1.0 to"),
        ("seed", -5, "seed is -5; it must be from 0 to"),
        ("condition_noise", 7.0, "condition_noise is 7.0; it must be from 0.0 to 0.5"),
        ("color_anchor", 7.0, "color_anchor is 7.0; it must be from 0.0 to 1.0"),
    ],
)
def test_linked_values_keep_to_the_ranges(server: Any, name: str, value: float, said: str) -> None:
    message, calls = failure(server, linked("unmade", **{name: value}))
    assert said in message
    assert calls == []


class InProcess:
    """Storyboards of 64 x 64 pixels in this process, without the node around them."""

    def __init__(self, loaded: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded = loaded
        module = sys.modules[find_node("LongCatStoryboard").__module__]
        self.host = sys.modules[module.host_of.__module__]
        self.studio = sys.modules[module.Storyboard.__module__]
        self.folder = folder
        self.said: list[str] = []
        server = SimpleNamespace(send_progress_text=lambda text, node_id: self.said.append(text))
        monkeypatch.setattr(self.host.PromptServer, "instance", server, raising=False)

    @torch.inference_mode()
    def make(
        self,
        name: str,
        prompts: list[str],
        frames: Tensor | None = None,
        mode: str = "base",
        seed_policy: str = "increment",
        steps: int = 3,
        cfg: float = 4.0,
        **settings: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """Frames, and the latent of every segment."""
        common = self.studio.Settings("blurry", 64, 64, LENGTH, OVERLAP, steps, cfg, **settings)
        studio = self.studio.Storyboard(*self.loaded, frames, common)
        continues = frames is not None and len(frames) > 1
        planned = plan.of_storyboard(prompts, mode, 7, seed_policy, continues, {})
        kept = files.SegmentFiles(self.folder, name)
        video = make_video(studio, planned, self.host.ComfyHost(kept, "", "1", None))
        return video, [kept.load_latent(segment) for segment in planned]


@pytest.fixture
def inprocess(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    return InProcess(loaded, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("mode", "policy", "cfg", "modes", "seeds"),
    [
        ("enhance_hf", "increment", 4.0, ["base", "enhance_hf", "enhance_hf"], [7, 8, 9]),
        ("distill", "same", 1.0, ["distill"] * 3, [7, 7, 7]),
    ],
)
@torch.inference_mode()
def test_equals_the_graph_of_single_nodes(
    loaded: Loaded, inprocess: InProcess, mode: str, policy: str, cfg: float, modes: list[str], seeds: list[int]
) -> None:
    """LongCat Continue Latent, LongCat Sampler, LongCat Decode and LongCat Join give the same, bit for bit.

    But for the condition frames, which ComfyUI's samplers scale to the model's units and back: the storyboard's are
    exact.
    """
    model, clip, vae = loaded
    prompts = ["a cat", "a dog", "a cat"]
    video, segments = inprocess.make("graph", prompts, mode=mode, seed_policy=policy, cfg=cfg)

    (negative,) = node("LongCatTextEncode")(clip, "blurry")
    (latent,) = node("LongCatLatent")(64, 64, LENGTH)
    expected = None
    for prompt, seed, each, found in zip(prompts, seeds, modes, segments, strict=True):
        (positive,) = node("LongCatTextEncode")(clip, prompt)
        (finished,) = node("LongCatSampler")(model, positive, negative, latent, seed, 3, cfg, each)
        n = OVERLAP_LATENTS if "noise_mask" in latent else 0
        torch.testing.assert_close(finished["samples"][:, :, :n], latent["samples"][:, :, :n])
        finished["samples"][:, :, :n] = latent["samples"][:, :, :n]
        assert torch.equal(found, finished["samples"])
        (frames,) = node("LongCatDecode")(vae, finished)
        expected = frames if expected is None else node("LongCatJoin")(expected, frames, OVERLAP)[0]
        (latent,) = node("LongCatContinueLatent")(finished, LENGTH, OVERLAP)
    assert torch.equal(video, expected)


def test_every_segment_is_decoded_once(inprocess: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is made or found on the disk."""
    decoded: list[Tensor] = []
    cores = core_nodes.VAEDecode.decode

    def decode(self: Any, vae: Any, samples: dict) -> tuple:
        decoded.append(samples["samples"])
        return cores(self, vae, samples)

    monkeypatch.setattr(core_nodes.VAEDecode, "decode", decode)
    first, segments = inprocess.make("once", ["a cat", "a dog", "a bird"], steps=1)
    assert all(torch.equal(one, other) for one, other in zip(decoded, segments, strict=True))
    decoded.clear()
    second, _ = inprocess.make("once", ["a cat", "a dog", "a bird"], steps=1)
    assert all(torch.equal(one, other) for one, other in zip(decoded, segments, strict=True))
    assert torch.equal(first, second)
    assert inprocess.said == [f"Segment {number} of 3" for number in (1, 2, 3)] * 2


def drift(segments: list[Tensor]) -> float:
    """How far the mean of a channel of the last segment is from that of the first, on average."""
    first, last = (segment.mean((0, 2, 3, 4)) for segment in (segments[0], segments[-1]))
    return (last - first).abs().mean().item()


def seam(video: Tensor) -> float:
    """Change between the frames at seams, relative to the change from frame to frame elsewhere."""
    changes = video.diff(dim=0).abs().mean((1, 2, 3))
    at_seams = torch.zeros(len(changes), dtype=torch.bool)
    at_seams[LENGTH - 1 :: LENGTH - OVERLAP] = True
    return (changes[at_seams].mean() / changes[~at_seams].mean()).item()


def test_color_anchor_and_condition_noise(inprocess: InProcess, report: list[str]) -> None:
    """Both act, and in no segment on the frames that it shares with the one before."""
    options: dict[str, dict[str, float]] = {
        "off": {},
        "anchored": {"color_anchor": 0.5},
        "noised": {"condition_noise": 0.05},
        "both": {"color_anchor": 0.5, "condition_noise": 0.05},
    }
    prompts = ["a cat", "a dog", "a bird", "a fish"]
    made = {name: inprocess.make(name, prompts, steps=2, cfg=1.0, **settings) for name, settings in options.items()}
    for name, (_, segments) in made.items():
        for one, following in itertools.pairwise(segments):
            assert torch.equal(following[:, :, :OVERLAP_LATENTS], one[:, :, -OVERLAP_LATENTS:])
        assert torch.equal(segments[0], made["off"][1][0])
        assert name == "off" or not torch.equal(segments[1], made["off"][1][1])
    drifts = {name: drift(segments) for name, (_, segments) in made.items()}
    seams = {name: seam(video) for name, (video, _) in made.items()}
    report.append(
        f"storyboard of 4 random segments, drift of the latent channels' means: {drifts['off']:.3f}, with "
        f"color_anchor 0.5: {drifts['anchored']:.3f}; change at seams relative to elsewhere: {seams['off']:.3f}, with "
        f"condition_noise 0.05: {seams['noised']:.3f}"
    )
    assert drifts["anchored"] < drifts["off"]


def test_condition_noise_reaches_the_model_and_not_the_start_image(loaded: Loaded, inprocess: InProcess) -> None:
    """The model sees the start image with noise, the segment begins with the clean one."""
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    (clean,) = inprocess.make("clean", ["a cat"], image)[1]
    (noised,) = inprocess.make("noised", ["a cat"], image, condition_noise=0.05)[1]
    (encoded,) = node("VAEEncode")(loaded[2], image)
    given = encoded["samples"]
    assert torch.equal(clean[:, :, :1], given)
    assert torch.equal(noised[:, :, :1], given)
    assert not torch.equal(clean[:, :, 1:], noised[:, :, 1:])


def test_cancelled_between_segments(inprocess: InProcess) -> None:
    """Finished segments are only decoded, which no sampler interrupts."""
    _, segments = inprocess.make("cancelled", ["a cat", "a dog"])
    inprocess.said.clear()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        inprocess.make("cancelled", ["a cat", "a dog"])
    assert inprocess.said == []
    _, again = inprocess.make("cancelled", ["a cat", "a dog"])
    assert all(torch.equal(a, b) for a, b in zip(segments, again, strict=True))


def test_a_finished_segment_that_is_deleted_meanwhile_is_made_again(
    inprocess: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a cat", "a dog", "a bird"]
    _, segments = inprocess.make("deleted", prompts)
    second = next(inprocess.folder.glob("deleted_002_*.latent"))
    decode = inprocess.studio.Storyboard.decode

    def delete_and_decode(studio: Any, segment: plan.Segment, samples: Tensor) -> Tensor:
        if segment.index == 0:
            second.unlink()
        return decode(studio, segment, samples)

    monkeypatch.setattr(inprocess.studio.Storyboard, "decode", delete_and_decode)
    _, again = inprocess.make("deleted", prompts)
    assert all(torch.equal(a, b) for a, b in zip(segments, again, strict=True))


def test_a_full_disk_is_said_with_the_path(inprocess: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(comfy.utils, "save_torch_file", fail)
        with pytest.raises(OSError, match=r"full_001_\w+\.latent cannot be written: .*No space left.* queue the same"):
            inprocess.make("full", ["a cat"])
    assert list(inprocess.folder.iterdir()) == []


@pytest.mark.parametrize("prefix", ["", "long/..", "  "])
def test_a_prefix_without_a_name_is_refused(prefix: str) -> None:
    said = find_node("LongCatStoryboard").validate_inputs(filename_prefix=prefix)
    assert said == "filename_prefix has no name at its end. Write how the segments' files begin, such as long."
