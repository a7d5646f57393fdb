"""Refinement through a real server: at the trained size, twice the same, and segment by segment, killed and resumed."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host.videos import read_video, saved_file, write_video
from PIL import Image
from served import Prompt, frames_of, latents, output, sampled, samples_of, samplings, samplings_and_log, state

FRAMES, HEIGHT, WIDTH = 24, 48, 84
LENGTH, SHARED = 12, 4
STEPS = 5  # model calls of the 50 steps
SMALL = {"size": "custom", "width": 64, "height": 64}
LOADER = {"class_type": "LongCatLoader", "inputs": {"folder": "tiny-random"}}


@pytest.fixture(scope="module", autouse=True)
def given(server: Any) -> None:
    """Videos `<n>.mp4` of n frames in the server's folder of inputs: a bright bar that moves."""
    for count in (5, FRAMES):
        frames = np.full((count, HEIGHT, WIDTH, 3), 40, np.uint8)
        for index, frame in enumerate(frames):
            frame[:, 2 * index : 2 * index + 20] = (220, 180, 60)
        write_video(frames, server.base_directory / "input" / f"{count}.mp4", 15)


def copy_given(name: str, source: Any, target: Any) -> None:
    """Give a server the very file of another: written a second time, its frames might be others."""
    (target.base_directory / "input").mkdir(exist_ok=True)
    shutil.copy(source.base_directory / "input" / name, target.base_directory / "input" / name)


def refine(count: int, seed: int = 3, **changes: Any) -> Prompt:
    """A graph that refines the given video of `count` frames and saves it, its latent and its frames."""
    prompts = {"positive": ["text", 0], "negative": ["text", 0], "latent": ["refine", 0], "model": ["sparse", 0]}
    run = {"seed": seed, "steps": 50, "cfg": 1.0, "mode": "refine"}
    frames = {"vae": ["loader", 2], "frames": ["components", 0], "mode": "spatial+temporal"}
    name = f"refine/{count}"
    return {
        "loader": LOADER,
        "video": {"class_type": "LoadVideo", "inputs": {"file": f"{count}.mp4"}},
        "components": {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}},
        "text": {"class_type": "LongCatTextEncode", "inputs": {"clip": ["loader", 1], "text": "a moving bar"}},
        "sparse": {"class_type": "LongCatBlockSparseAttention", "inputs": {"model": ["loader", 0], "sparsity": 0.9375}},
        "refine": {"class_type": "LongCatRefineLatent", "inputs": frames | changes},
        "sampler": {"class_type": "LongCatSampler", "inputs": prompts | run},
        "decode": {"class_type": "LongCatDecode", "inputs": {"vae": ["loader", 2], "latent": ["sampler", 0]}},
        "create": {"class_type": "CreateVideo", "inputs": {"images": ["decode", 0], "fps": 30.0}},
        "save": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["create", 0], "filename_prefix": name, "format": "auto", "codec": "auto"},
        },
    }


def refine_video(name: str, **changes: Any) -> Prompt:
    """A graph that refines the given long video segment by segment."""
    graph = refine(FRAMES)
    inputs = {
        **{"model": ["sparse", 0], "positive": ["text", 0], "vae": ["loader", 2], "frames": ["components", 0]},
        **{"mode": "spatial+temporal", "seed": 3, "steps": 50, "filename_prefix": f"longcat/{name}"},
        **{"length": LENGTH, "num_cond_frames": SHARED, "fps": ["components", 2], **SMALL},
    }
    kept = ("loader", "video", "components", "text", "sparse")
    return {
        **{key: graph[key] for key in kept},
        "refine": {"class_type": "LongCatRefineVideo", "inputs": inputs | changes},
        "create": {"class_type": "CreateVideo", "inputs": {"images": ["refine", 0], "fps": ["refine", 1]}},
        "save": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["create", 0], "filename_prefix": f"video/{name}", "format": "auto", "codec": "auto"},
        },
        "png": {"class_type": "SaveImage", "inputs": {"images": ["refine", 0], "filename_prefix": f"png/{name}"}},
    }


def saved(server: Any, prompt: Prompt) -> tuple[np.ndarray, float]:
    """What *Save Video* wrote, as `read_video`."""
    from host.client import outputs

    file = saved_file(prompt, outputs(server.run(prompt)))
    return read_video(io.BytesIO(server.download(file["filename"], file["subfolder"])))


def test_the_trained_size(server: Any) -> None:
    """A tall video, whose nearest trained size is the one that the tiny VAE is quickest with on a CPU."""
    write_video(np.full((5, 180, 48, 3), 90, np.uint8), server.base_directory / "input" / "tall.mp4", 15)
    prompt = refine(5, size="720p")
    prompt["video"]["inputs"]["file"] = "tall.mp4"
    frames, fps = saved(server, prompt)
    assert (frames[0].shape, len(frames), fps) == ((1920, 512, 3), 10, 30)


def test_same_seed_same_bytes(start: Any, server: Any) -> None:
    """In two servers, so that nothing is remembered; another seed gives other ones."""
    found: list[list[bytes]] = []
    with start() as other:
        copy_given("5.mp4", server, other)
        for one, seed in ((other, 3), (server, 3), (server, 4)):
            prompt = refine(5, seed, **SMALL)
            inputs = {"images": ["decode", 0], "filename_prefix": f"png/{len(found)}"}
            assert sampled(one, prompt | {"png": {"class_type": "SaveImage", "inputs": inputs}}) == [STEPS]
            files = sorted(output(one, "png").glob(f"{len(found)}_*.png"))
            found.append([np.asarray(Image.open(path)).tobytes() for path in files])
    assert [len(frames) for frames in found] == [10, 10, 10]
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.fixture(scope="module")
def uninterrupted(server: Any) -> Any:
    """A server that has refined the long video in one go: 12, 12 and 8 frames, 4 of them shared."""
    assert sampled(server, refine_video("refined")) == [STEPS, STEPS, STEPS]
    return server


def pictures(server: Any, name: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(output(server, "png").glob(f"{name}_*.png"))])


def test_a_long_video(uninterrupted: Any) -> None:
    assert pictures(uninterrupted, "refined").shape == (2 * FRAMES, 64, 64, 3)
    (video,) = output(uninterrupted, "video").glob("refined_*.mp4")
    frames, fps = read_video(str(video))
    assert (len(frames), fps) == (2 * FRAMES, 30)
    parts = [frames_of(path.with_name(f"{path.stem}_30fps.mp4")) for path in latents(uninterrupted, "refined")]
    assert [len(part) for part in parts] == [24, 16, 8]


def test_killed_in_the_second_segment_it_goes_on_with_it(start: Any, uninterrupted: Any) -> None:
    from host.client import ServerError

    prompt = refine_video("refined")
    with start() as server:
        copy_given(f"{FRAMES}.mp4", uninterrupted, server)
        events: list[Any] = []

        def kill_in_the_second(event: Any) -> None:
            events.append(event)
            if len(samplings(events)) == 2:
                server.process.kill()

        with pytest.raises(ServerError):
            server.run(prompt, kill_in_the_second)
    killed = state(sorted(output(server, "longcat").iterdir()))
    assert [Path(name).suffix for name, *_ in killed] == [".latent", ".mp4"]
    with start() as server:
        calls, log = samplings_and_log(server, prompt)
    assert calls == [STEPS, STEPS]
    assert "LongCat Refine Video: 2 of 3 segments are to be made." in log
    assert state(sorted(output(server, "longcat").iterdir()))[:2] == killed
    for one, other in zip(latents(uninterrupted, "refined"), latents(server, "refined"), strict=True):
        assert one.name == other.name
        assert torch.equal(samples_of(one), samples_of(other))
    assert np.array_equal(pictures(uninterrupted, "refined"), pictures(server, "refined"))


def test_equals_the_graph_of_single_nodes(uninterrupted: Any, server: Any) -> None:
    """The second segment from *LongCat Refine Latent*, begun with the end of the first."""
    whole = pictures(uninterrupted, "refined")
    graph = refine(FRAMES, seed=3, **SMALL)
    for number in (1, 2):
        cut = {"image": ["components", 0], "batch_index": (number - 1) * (LENGTH - SHARED), "length": LENGTH}
        graph[f"part{number}"] = {"class_type": "ImageFromBatch", "inputs": cut}
        for name in ("refine", "sampler", "decode"):
            graph[f"{name}{number}"] = {**graph[name], "inputs": dict(graph[name]["inputs"])}
        graph[f"refine{number}"]["inputs"]["frames"] = [f"part{number}", 0]
        graph[f"sampler{number}"]["inputs"] |= {"latent": [f"refine{number}", 0], "seed": 2 + number}
        graph[f"decode{number}"]["inputs"]["latent"] = [f"sampler{number}", 0]
    graph["refine2"]["inputs"] |= {"condition_frames": ["decode1", 0], "num_cond_frames": 2 * SHARED}
    join = {"source": ["decode1", 0], "continuation": ["decode2", 0], "overlap": 2 * SHARED}
    graph["join"] = {"class_type": "LongCatJoin", "inputs": join}
    graph["png"] = {"class_type": "SaveImage", "inputs": {"images": ["join", 0], "filename_prefix": "png/single"}}
    for name in ("refine", "sampler", "decode", "create", "save"):
        del graph[name]
    assert sampled(server, graph) == [STEPS, STEPS]
    assert np.array_equal(pictures(server, "single"), whole[:40])


def test_condition_frames_come_back(server: Any) -> None:
    """In the sampled latent, where the other frames are new."""
    prompt = refine(FRAMES, condition_frames=["components", 0], num_cond_frames=9, **SMALL | {"width": 112})
    for name in ("refine", "sampler"):
        inputs = {"samples": [name, 0], "filename_prefix": f"cond/{name}"}
        prompt[f"{name} saved"] = {"class_type": "SaveLatent", "inputs": inputs}
    assert sampled(server, prompt) == [STEPS]
    start, end = (samples_of(next(output(server, "cond").glob(f"{name}_*"))) for name in ("refine", "sampler"))
    assert (start - end)[:, :, :4].abs().max() < 1e-5
    assert (start - end)[:, :, 4:].abs().amax((0, 1, 3, 4)).min() > 0.1


def test_finished_it_samples_nothing_and_more_frames_only_add(uninterrupted: Any) -> None:
    before = state(latents(uninterrupted, "refined"))
    # Another output node that was not there makes ComfyUI run the prompt again.
    prompt = refine_video("refined", threshold=0.5)
    prompt["twice"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["components", 0], "amount": 1}}
    prompt["refine"]["inputs"]["frames"] = ["twice", 0]
    assert sampled(uninterrupted, prompt) == []
    prompt["twice"]["inputs"]["amount"] = 2
    assert sampled(uninterrupted, prompt) == [STEPS] * 4
    kept = state(latents(uninterrupted, "refined"))
    assert [entry for entry in kept if entry in before] == before


@pytest.mark.parametrize(
    ("changes", "calls"),
    [({"seed": 4}, 3), ({"mode": "spatial"}, 3), ({"threshold": 0.3}, 3)],
    ids=lambda value: str(value),
)
def test_what_changes_the_result_is_made_anew(uninterrupted: Any, changes: dict, calls: int) -> None:
    made = sampled(uninterrupted, refine_video("refined", **changes))
    assert len(made) == calls


def test_a_random_prompt_that_has_changed_is_noticed(server: Any) -> None:
    """The node in front of the prompt has the same inputs each time, and another text."""
    text = server.base_directory / "input" / "prompt.txt"
    prompt = refine_video("random", length=FRAMES) | {
        "random": {"class_type": "TestTextOfFile", "inputs": {"name": text.name}}
    }
    prompt["text"]["inputs"]["text"] = ["random", 0]
    for words, calls in [("a bar", [STEPS]), ("a ball", [STEPS]), ("a bar", [])]:
        text.write_text(words)
        assert sampled(server, prompt) == calls


def test_another_frame_rate_makes_other_videos_of_the_same_latents(server: Any, uninterrupted: Any) -> None:
    frames, fps = saved(server, refine_video("refined", fps=23.976))
    assert (len(frames), fps) == (2 * FRAMES, pytest.approx(47.952, abs=1e-3))
    other = sorted(output(server, "longcat").glob("refined_*_47.952fps.mp4"))
    assert len(other) == 3
    for video in other:
        assert read_video(str(video))[1] == pytest.approx(47.952, abs=1e-3)
        assert read_video(str(video).replace("47.952", "30"))[1] == 30


@pytest.mark.parametrize(
    ("node_id", "changes", "said"),
    [
        ("refine", {"threshold": 1.0}, "threshold is 1.0; it must be from 0.01 to 0.99."),
        ("refine", {"threshold": 0.0}, "threshold is 0.0; it must be from 0.01 to 0.99."),
        ("refine", {"num_cond_frames": 12}, "num_cond_frames is 12 and length 12: segments that share all"),
        ("refine", {"width": 70}, "width must be a multiple of 16 (use 64 or 80), it is 70"),
        ("refine", {"filename_prefix": "longcat/.."}, "filename_prefix has no name at its end"),
        ("refine", {"size": "4k"}, "size is '4k'; it must be one of 720p, custom."),
        ("sparse", {"sparsity": 1.0}, "sparsity is 1.0; it must be from 0.0 to 0.999."),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(server: Any, node_id: str, changes: dict, said: str) -> None:
    from host.client import PromptRejected

    prompt = refine_video("wrong")
    prompt[node_id]["inputs"] |= changes
    with pytest.raises(PromptRejected) as refused:
        server.post_prompt(prompt)
    assert said in str(refused.value)


def failure(server: Any, prompt: Prompt) -> str:
    """The sentence that a prompt ends with."""
    kind, error = server.run(prompt)["status"]["messages"][-1]
    assert kind == "execution_error"
    return error["exception_message"]


def test_wrong_frames_are_said(server: Any) -> None:
    one = refine_video("wrong")
    one["one"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["components", 0], "batch_index": 0, "length": 1}}
    one["refine"]["inputs"]["frames"] = ["one", 0]
    assert "The video to refine has 1 frames; mode spatial+temporal needs at least 2" in failure(server, one)

    chunk = refine_video("wrong", mode="spatial")
    chunk["sparse"]["inputs"]["chunk_width"] = 8
    assert "Block-sparse attention has chunks of 4 x 8 tokens, and a frame of this video has 4 x 4" in failure(
        server, chunk
    )

    large = refine_video("wrong", width=16384, height=16384)
    large["many"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["components", 0], "amount": 2}}
    large["refine"]["inputs"]["frames"] = ["many", 0]
    assert "The refined video has 96 frames of 16384 x 16384 pixels, 309.2 GB as images" in failure(server, large)


def test_frames_of_mixed_sizes(server: Any) -> None:
    """A list, which ComfyUI runs the graph for one by one; a batch, of one size; another video's condition frames."""
    folder = server.base_directory / "input"
    sizes = {"a": (84, 48), "b": (30, 60)}
    prompt = refine(5, **SMALL)
    for name, size in sizes.items():
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
        prompt[name] = {"class_type": "LoadImage", "inputs": {"image": f"{name}.png"}}
    listed = {f"inputs.input{index}": [name, 0] for index, name in enumerate(sizes)}
    prompt["list"] = {"class_type": "CreateList", "inputs": listed}
    prompt["batch"] = {"class_type": "ImageBatch", "inputs": {"image1": ["a", 0], "image2": ["b", 0]}}
    prompt["refine"]["inputs"]["frames"] = ["list", 0]
    assert (
        "has 1 frames; mode spatial+temporal needs at least 2. Connect the frames of a whole video as one"
        in failure(server, prompt)
    )

    prompt["refine"]["inputs"]["frames"] = ["batch", 0]
    frames, _ = saved(server, prompt)
    assert (frames[0].shape, len(frames)) == ((64, 64, 3), 4)

    prompt["refine"]["inputs"] |= {"frames": ["components", 0], "condition_frames": ["b", 0]}
    assert "condition_frames is 30 x 60 pixels and the refined video 64 x 64: shapes" in failure(server, prompt)
