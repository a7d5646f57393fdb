"""Image-to-video and continuation: condition frames, from the nodes that make them to the joined video."""

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.latent_formats
import folder_paths
import numpy as np
import pytest
import torch
from inprocess import find_node, node, sample
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from longcat_core import schedule
from longcat_core.frames.waiting import ROUNDING, is_waiting

Loaded = tuple[Any, Any, Any]
Prompts = tuple[Any, Any]
SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "heun", "lcm", "res_multistep", "uni_pc")
WAN = comfy.latent_formats.Wan21()
STEPS = 4


def pictures(num_frames: int, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Random frames `[F, H, W, 3]` of 8-bit values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, height, width, 3), generator=generator) / 255


@pytest.fixture(scope="module")
def video() -> Tensor:
    """21 frames of 64 x 64 pixels."""
    return pictures(21)


@pytest.fixture(scope="module")
def finished(loaded: Loaded, prompts: Prompts) -> dict[str, Tensor]:
    """A sampled batch of two videos of 17 frames, from another seed than the tests use."""
    (latent,) = node("LongCatLatent")(64, 64, 17, 2)
    return {"samples": sample(loaded[0], prompts, latent, seed=1)}


def encoded(vae: Any, frames: Tensor) -> Tensor:
    """Latents `[1, 16, T, H, W]` from core's own node."""
    return node("VAEEncode")(vae, frames)[0]["samples"]


def from_frames(vae: Any, frames: Tensor, length: int = 33, num_cond_frames: int = 13, **more: Any) -> dict:
    """LongCat Latent of 64 x 64 pixels from frames."""
    options = {"width": 64, "height": 64, "length": length, "num_cond_frames": num_cond_frames} | more
    return node("LongCatLatent")(vae=vae, frames=frames, **options)[0]


class Call(NamedTuple):
    """What one call of the network was given."""

    latent: Tensor
    timestep: Tensor
    num_cond_latents: int
    window: list[int]  # the latent frames that it sees


class watch_calls:  # noqa: N801 - reads as a function
    """A clone of a model that keeps what every call of the network is given."""

    def __init__(self, model: Any) -> None:
        self.calls: list[Call] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key("diffusion_model", "watch", self.call)

    def call(self, executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        window = args[1].get("context_window")
        frames = range(x.shape[2]) if window is None else window.index_list
        self.calls.append(Call(x.clone(), timestep.clone(), kwargs["num_cond_latents"], list(frames)))
        return executor(x, timestep, *args, **kwargs)


def assert_conditioned(calls: list[Call], condition: Tensor) -> None:
    """Every call has exactly the condition `[B, 16, t, H, W]`, normalised, at timestep 0 and the rest at another."""
    num_cond_latents = condition.shape[2]
    expected = WAN.process_in(condition)
    for call in calls:
        assert call.num_cond_latents == num_cond_latents
        given = call.latent[:, :, :num_cond_latents]
        assert torch.equal(given, expected.repeat(len(given) // len(expected), 1, 1, 1, 1))
        assert (call.timestep[:, :num_cond_latents] == 0).all()
        assert (call.timestep[:, num_cond_latents:] > 0).all()


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "kv_cache"])
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_no_sampler_touches_the_given_frames(
    loaded: Loaded, prompts: Prompts, video: Tensor, sampler_name: str, cached: bool
) -> None:
    """Bit for bit at every call, and in the joined video."""
    model, _, vae = loaded
    watched = watch_calls(node("LongCatKVCache")(model, "auto")[0] if cached else model)
    latent = from_frames(vae, video)
    found = sample(node("LongCatCFGZero")(watched.model)[0], prompts, latent, steps=STEPS, sampler_name=sampler_name)
    assert len(watched.calls) >= STEPS
    assert_conditioned(watched.calls, encoded(vae, video[-13:]))
    generated = [call.latent[:, :, 4:] for call in watched.calls]
    assert not torch.allclose(generated[0], generated[-1])

    (frames,) = node("LongCatDecode")(vae, {"samples": found})
    (joined,) = node("LongCatJoin")(video, frames, 13)
    assert torch.equal(joined[:21], video)
    assert torch.equal(joined[21:], frames[13:])


@pytest.mark.parametrize("sampler_name", [*SAMPLERS, "uni_pc_bh2", "dpm_fast", "dpm_adaptive"])
def test_samplers_hand_the_given_frames_back(
    loaded: Loaded, prompts: Prompts, video: Tensor, sampler_name: str
) -> None:
    latent = from_frames(loaded[2], video)
    found = sample(loaded[0], prompts, latent, sampler_name=sampler_name)
    torch.testing.assert_close(found[:, :, :4], latent["samples"][:, :, :4], atol=1e-6, rtol=1e-6)


def test_two_stages_are_one(loaded: Loaded, prompts: Prompts, video: Tensor) -> None:
    """A first stage that stops half way leaves noise in the latent, but not in its condition frames."""
    latent = from_frames(loaded[2], video)
    (model,) = node("LongCatCFGZero")(loaded[0])
    watched = watch_calls(model)
    options = (7, 6, 4.0, "euler", "longcat", *prompts)
    (half,) = node("KSamplerAdvanced")(watched.model, "enable", *options, latent, 0, 3, "enable")
    (found,) = node("KSamplerAdvanced")(watched.model, "disable", *options, half, 3, 6, "disable")
    assert len(watched.calls) == 6
    condition = WAN.process_in(latent["samples"])[:, :, :4]
    for call in watched.calls:
        given = call.latent[:, :, :4]
        torch.testing.assert_close(given, condition.expand_as(given), atol=1e-6, rtol=1e-6)
    whole = sample(model, prompts, latent, steps=6)
    torch.testing.assert_close(found["samples"], whole, atol=1e-4, rtol=1e-4)


def test_a_latent_of_another_run_stays_as_it_is(loaded: Loaded, prompts: Prompts, video: Tensor) -> None:
    model = loaded[0]
    sample(model, prompts, from_frames(loaded[2], video))
    other = torch.randn(1, 16, 9, 8, 8)
    assert torch.equal(model.model.process_latent_out(other), WAN.process_out(other))


def test_a_stopped_run_leaves_other_latents_alone(loaded: Loaded, prompts: Prompts, video: Tensor) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise InterruptedError

    model = loaded[0].clone()
    model.add_wrapper_with_key("diffusion_model", "stop", stop)
    with pytest.raises(InterruptedError):
        sample(model, prompts, from_frames(loaded[2], video))
    other = torch.randn(1, 16, 9, 8, 8)
    assert torch.equal(model.model.process_latent_out(other), WAN.process_out(other))


@pytest.mark.parametrize("size", ["480p", "720p"])
def test_trained_sizes_need_no_grid(size: str) -> None:
    """Width and height are only a shape then, such as that of a picture."""
    assert find_node("LongCatLatent").validate_inputs(width=1000, height=660, length=17, size=size) is True
    (latent,) = node("LongCatLatent")(1000, 660, 1, size=size)
    assert latent["samples"].shape == (1, 16, 1, *((64, 96) if size == "480p" else (100, 144)))


def test_unknown_sizes_are_refused() -> None:
    said = find_node("LongCatLatent").validate_inputs(width=64, height=64, length=17, size="4k")
    assert said == "size is '4k'; it must be one of custom, 480p, 720p."


def test_latent_of_an_image(loaded: Loaded) -> None:
    """One frame whatever num_cond_frames says; the others are zeros as the network sees them."""
    image = pictures(1)
    latent = from_frames(loaded[2], image, length=17, num_cond_frames=13)
    assert torch.equal(latent["samples"][:, :, :1], encoded(loaded[2], image))
    assert not WAN.process_in(latent["samples"])[:, :, 1:].any()
    assert latent["noise_mask"].shape == (1, 1, 5, 8, 8)
    assert latent["noise_mask"].amax(dim=(0, 1, 3, 4)).tolist() == [0, 1, 1, 1, 1]
    assert torch.equal(latent["noise_mask"].amin(dim=(0, 1, 3, 4)), latent["noise_mask"].amax(dim=(0, 1, 3, 4)))


def test_alpha_is_left_out(loaded: Loaded) -> None:
    """Before resizing, which would weight the colors with it."""
    image = pictures(1, 90, 120)
    with_alpha = torch.cat([image, pictures(1, 90, 120, seed=1)[..., :1]], dim=-1)
    found, expected = (from_frames(loaded[2], frames)["samples"] for frames in (with_alpha, image))
    assert torch.equal(found, expected)


def test_image_to_video_in_a_batch(loaded: Loaded, prompts: Prompts) -> None:
    """Two videos from one image, and other ones from another."""
    found = []
    for seed in (0, 1):
        image = pictures(1, seed=seed)
        watched = watch_calls(loaded[0])
        latent = from_frames(loaded[2], image, length=17, batch_size=2)
        assert latent["samples"].shape == (2, 16, 5, 8, 8)
        found.append(sample(watched.model, prompts, latent))
        assert_conditioned(watched.calls, encoded(loaded[2], image))
    first, other = found
    assert not torch.allclose(first[0, :, 1:], first[1, :, 1:])
    assert not torch.allclose(first[:, :, 1:], other[:, :, 1:])


def test_mask_of_cores_own_node_is_the_same(loaded: Loaded, prompts: Prompts, video: Tensor) -> None:
    latent = from_frames(loaded[2], video)
    mask = torch.ones(9, 64, 64)
    mask[:4] = 0
    (cores,) = node("SetLatentNoiseMask")({"samples": latent["samples"]}, mask)
    assert torch.equal(sample(loaded[0], prompts, cores), sample(loaded[0], prompts, latent))


def masked(samples: Tensor, keep: tuple, value: float = 0.0) -> dict[str, Tensor]:
    """A LATENT whose mask has a value at an index of its `T, H, W`, and 1 elsewhere."""
    mask = torch.ones(1, 1, *samples.shape[2:])
    mask[0, 0][keep] = value
    return {"samples": samples, "noise_mask": mask}


@pytest.mark.parametrize(
    "keep",
    [(..., slice(4)), (2,), (0, slice(7)), (slice(1, None),)],
    ids=["left half", "middle frame", "most of the first frame", "all but the first frame"],
)
def test_other_masks_are_cores_inpainting(loaded: Loaded, prompts: Prompts, finished: dict, keep: tuple) -> None:
    """Kept places are noised to the sigma of the call, and end as they were."""
    latent = masked(finished["samples"][:1], keep)
    samples, kept = latent["samples"], (latent["noise_mask"] == 0).expand_as(latent["samples"])
    watched = watch_calls(loaded[0])
    found = sample(watched.model, prompts, latent, steps=STEPS)
    clean, noise = WAN.process_in(samples), torch.randn(samples.shape, generator=torch.Generator().manual_seed(7))
    for sigma, call in zip(schedule.sigmas("base", STEPS)[:-1], watched.calls, strict=True):
        assert call.num_cond_latents == 0
        assert (call.timestep == 1000 * sigma).all()
        expected = sigma * noise + (1 - sigma) * clean
        torch.testing.assert_close(call.latent[:1][kept], expected[kept], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[kept], samples[kept], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[~kept], samples[~kept], atol=1)


def test_first_frame_that_may_change_a_little_is_no_condition(loaded: Loaded, prompts: Prompts, finished: dict) -> None:
    watched = watch_calls(loaded[0])
    sample(watched.model, prompts, masked(finished["samples"], (0,), value=0.01))
    assert [call.num_cond_latents for call in watched.calls] == [0] * 4
    assert all((call.timestep > 0).all() for call in watched.calls)


def test_frames_of_the_trained_sizes_are_stretched(loaded: Loaded) -> None:
    """As Pillow's Lanczos does it, each side on its own."""
    image = pictures(1, 90, 120)
    picture = Image.fromarray((image[0] * 255).round().byte().numpy())
    (latent,) = node("LongCatLatent")(64, 64, 5, vae=loaded[2], frames=image, size="480p")
    resized = np.asarray(picture.resize((736, 544), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    assert latent["samples"].shape == (1, 16, 2, 68, 92)
    assert torch.equal(latent["samples"][:, :, :1], encoded(loaded[2], torch.from_numpy(resized)[None]))


@pytest.mark.parametrize(
    ("width", "height", "box"), [(120, 90, (15, 0, 105, 90)), (60, 100, (0, 20, 60, 80))], ids=["wide", "tall"]
)
def test_frames_of_a_custom_size_fill_it(loaded: Loaded, width: int, height: int, box: tuple) -> None:
    """As Pillow's Lanczos does it with the middle of the picture."""
    image = pictures(1, height, width)
    picture = Image.fromarray((image[0] * 255).round().byte().numpy())
    latent = from_frames(loaded[2], image, length=5)
    resized = np.asarray(picture.crop(box).resize((64, 64), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    assert torch.equal(latent["samples"][:, :, :1], encoded(loaded[2], torch.from_numpy(resized)[None]))


@pytest.mark.parametrize(("size", "expected"), [("custom", (36, 64)), ("480p", (60, 104)), ("720p", (88, 164))])
def test_trained_size_nearest_to_width_and_height(size: str, expected: tuple[int, int]) -> None:
    """Without frames: 512 x 288 has the shape of 16:9."""
    (latent,) = node("LongCatLatent")(512, 288, 5, size=size)
    assert latent["samples"].shape == (1, 16, 2, *expected)
    assert not latent["samples"].any()
    assert "noise_mask" not in latent


def test_continuing_carries_the_tail_of_every_video(loaded: Loaded, prompts: Prompts, finished: dict) -> None:
    """The condition frames of the next segment are the last ones of this, bit for bit."""
    tail = finished["samples"][:, :, -3:]
    (latent,) = node("LongCatContinueLatent")(finished, 33, 9)
    assert torch.equal(latent["samples"][:, :, :3], tail)
    assert not WAN.process_in(latent["samples"])[:, :, 3:].any()
    assert latent["samples"].shape == (2, 16, 9, 8, 8)
    assert latent["noise_mask"].amax(dim=(0, 1, 3, 4)).tolist() == [0] * 3 + [1] * 6
    watched = watch_calls(loaded[0])
    sample(node("LongCatCFGZero")(watched.model)[0], prompts, latent)
    assert not torch.equal(tail[0], tail[1])
    assert_conditioned(watched.calls, tail)


def test_drift_at_the_seam(loaded: Loaded, finished: dict, report: list[str]) -> None:
    """Carried latents do not change; frames that are decoded and encoded again do."""
    segment = {"samples": finished["samples"][:1]}
    tail = segment["samples"][:, :, -4:]
    (carried,) = node("LongCatContinueLatent")(segment, 33, 13)
    (frames,) = node("LongCatDecode")(loaded[2], segment)
    again = from_frames(loaded[2], frames)
    drift = {
        name: ((latent["samples"][:, :, :4] - tail).norm() / tail.norm()).item()
        for name, latent in (("carried", carried), ("decoded and encoded again", again))
    }
    report.append(f"drift of the condition frames at a seam (tiny random VAE): {drift}")
    assert drift["carried"] == 0
    assert drift["decoded and encoded again"] > 1e-3


def test_context_windows_know_their_condition_frames(loaded: Loaded, prompts: Prompts, video: Tensor) -> None:
    latent = from_frames(loaded[2], video, length=33, num_cond_frames=5)
    watched = watch_calls(loaded[0])
    windows = node("WanContextWindowsManualNode")
    (windowed,) = windows(watched.model, 17, 5, "standard_static", 1, False, "pyramid", False)
    found = sample(windowed, prompts, latent)
    assert torch.isfinite(found).all()
    assert {call.window[0] for call in watched.calls} == {0, 4}
    first = [call for call in watched.calls if call.window[0] == 0]
    assert_conditioned(first, encoded(loaded[2], video[-5:]))
    for call in watched.calls:
        assert call.num_cond_latents == sum(frame < 2 for frame in call.window)
        assert ((call.timestep == 0).sum(dim=1) == call.num_cond_latents).all()


def test_join_takes_the_overlap_from_the_source(video: Tensor) -> None:
    continuation = pictures(33, seed=1)
    for overlap in (13, 1, 0):
        (joined,) = node("LongCatJoin")(video, continuation, overlap)
        assert torch.equal(joined, torch.cat([video, continuation[overlap:]]))


def test_join_brings_the_continuation_to_the_size_of_the_source(
    video: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    small = pictures(17, 32, 48, seed=1)
    with caplog.at_level("INFO"):
        (joined,) = node("LongCatJoin")(torch.cat([video, video[..., :1]], dim=-1), small, 13)
    (scaled,) = node("ImageScale")(small[13:], "bicubic", 64, 64, "disabled")
    assert torch.equal(joined, torch.cat([video, scaled.clamp(0, 1)]))
    assert "LongCat Join resizes the continuation" in caplog.text


@pytest.mark.parametrize(("overlap", "num_frames"), [(22, 33), (13, 13), (13, 9)])
def test_join_refuses_other_overlaps(video: Tensor, overlap: int, num_frames: int) -> None:
    said = f"overlap is {overlap}, but the source has 21 frames and the continuation {num_frames}: it must be num_cond"
    with pytest.raises(ValueError, match=said):
        node("LongCatJoin")(video, pictures(num_frames), overlap)


def test_num_cond_frames_is_rounded_down(
    loaded: Loaded, video: Tensor, finished: dict, caplog: pytest.LogCaptureFixture
) -> None:
    said = "num_cond_frames must be 4n+1; 12 was rounded to 9"
    found, expected = (from_frames(loaded[2], video, num_cond_frames=count)["samples"] for count in (12, 9))
    assert torch.equal(found, expected)
    assert caplog.text.count(said) == 1
    found, expected = (node("LongCatContinueLatent")(finished, 33, count)[0]["samples"] for count in (12, 9))
    assert torch.equal(found, expected)
    assert caplog.text.count(said) == 2


@pytest.mark.parametrize(
    ("num_frames", "options", "said"),
    [
        (21, {"length": 13}, "13 condition frames leave nothing to generate in a video of 13 frames. .* at least 17"),
        (21, {"length": 9}, "13 condition frames leave nothing to generate in a video of 9 frames. .* at least 17"),
        (1, {"length": 1}, "1 condition frames leave nothing to generate in a video of 1 frames. .* at least 5"),
        (11, {}, "video has 11 frames and num_cond_frames is 13. Connect a longer video, or set .* to 9; 1 goes on"),
        (21, {"length": 34}, r"length must be 4n\+1 \(use 33 or 37\), it is 34"),
        (21, {"width": 70}, r"width must be a multiple of 16 \(use 64 or 80\), it is 70"),
    ],
)
def test_frames_that_do_not_fit_are_refused(loaded: Loaded, num_frames: int, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_frames(loaded[2], pictures(num_frames), **options)


def test_frames_far_from_every_trained_size_are_refused(loaded: Loaded) -> None:
    with pytest.raises(ValueError, match=r"640 x 64 pixels is too far .* Crop it first, or set size to custom"):
        from_frames(loaded[2], pictures(1, 64, 640), size="480p")


def test_frames_without_a_vae_are_refused(video: Tensor) -> None:
    with pytest.raises(ValueError, match="no VAE is connected: connect the model's VAE"):
        from_frames(None, video)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (torch.zeros(1, 16, 5, 8, 8), "The latent is empty: nothing was sampled"),
        (torch.ones(1, 4, 8, 8), r"has shape \(1, 4, 8, 8\)"),
        (torch.ones(1, 16, 3, 8, 8), "latent holds 9 frames and num_cond_frames is 13. Set num_cond_frames to 9 or"),
    ],
)
def test_latents_that_cannot_be_continued_are_refused(samples: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        node("LongCatContinueLatent")({"samples": samples}, 33, 13)


def test_a_linked_length_is_not_known_at_validation() -> None:
    assert find_node("LongCatContinueLatent").validate_inputs(length=None, num_cond_frames=13) is True


def test_a_linked_number_of_condition_frames_is_checked_when_the_node_runs(finished: dict) -> None:
    with pytest.raises(ValueError, match=r"num_cond_frames is 0; it must be from 1 to"):
        node("LongCatContinueLatent")(finished, 33, 0)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("LongCatLatent", {"batch_size": 0}, "batch_size is 0; it must be from 1 to 64"),
        ("LongCatLatent", {"num_cond_frames": 0}, "num_cond_frames is 0; it must be from 1 to"),
        ("LongCatJoin", {"overlap": -5}, "overlap is -5; it must be from 0 to"),
        ("LongCatSampler", {"cfg": -3.0}, r"cfg is -3.0; it must be from 1.0 to 30.0"),
    ],
)
def test_linked_values_keep_to_the_ranges(
    loaded: Loaded, prompts: Prompts, empty_latent: dict, name: str, changes: dict, said: str
) -> None:
    sampling = {"model": loaded[0], "positive": prompts[0], "negative": prompts[1], "latent": empty_latent}
    arguments: dict[str, dict[str, Any]] = {
        "LongCatLatent": {"width": 64, "height": 64, "length": 17},
        "LongCatJoin": {"source": pictures(5), "continuation": pictures(9)},
        "LongCatSampler": {**sampling, "seed": 1, "steps": 2, "mode": "base"},
    }
    with pytest.raises(ValueError, match=said):
        node(name)(**arguments[name], **changes)


def test_an_empty_video_is_refused(loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="has no frames: connect an image"):
        from_frames(loaded[2], torch.zeros(0, 64, 64, 3))


def test_a_linked_length_is_checked_when_the_node_runs(finished: dict) -> None:
    with pytest.raises(ValueError, match=r"length must be 4n\+1 \(use 33 or 37\)"):
        node("LongCatContinueLatent")(finished, 34, 13)


def test_another_models_vae_is_named(video: Tensor) -> None:
    class OtherVae:
        def encode(self, frames: Tensor) -> Tensor:
            return torch.zeros(len(frames), 4, 8, 8)

    with pytest.raises(ValueError, match=r"shape \(13, 4, 8, 8\), LongCat-Video needs \(1, 16, 4, 8, 8\): it is not"):
        from_frames(OtherVae(), video)


def test_grey_frames_get_three_colors(loaded: Loaded) -> None:
    grey = pictures(1, 40, 40)[..., :1]
    found, expected = (from_frames(loaded[2], frames)["samples"] for frames in (grey, grey.repeat(1, 1, 1, 3)))
    assert torch.equal(found, expected)


def test_latent_that_was_not_sampled_is_refused(loaded: Loaded, video: Tensor) -> None:
    """Condition frames in front do not make it a finished one."""
    latent = from_frames(loaded[2], video)
    with pytest.raises(ValueError, match="The latent is empty: nothing was sampled"):
        node("LongCatContinueLatent")(latent, 33, 13)
    with pytest.raises(ValueError, match="The latent is empty: nothing was sampled"):
        node("LongCatDecode")(loaded[2], latent)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": 30, "num_cond_frames": 13}, "length must be 4n+1 (use 29 or 33), it is 30"),
        ({"length": 13, "num_cond_frames": 13}, "13 condition frames leave nothing to generate in a video of 13"),
        ({"length": 17, "num_cond_frames": 18}, "raise length to at least 21"),
        ({"length": 33, "num_cond_frames": 0}, "num_cond_frames is 0; it must be from 1 to"),
        ({"length": 1}, "length is 1; it must be from 5 to"),
    ],
)
def test_continuations_refused_at_validation(arguments: dict, said: str) -> None:
    assert said in find_node("LongCatContinueLatent").validate_inputs(**arguments)


ROUND_TRIPS: dict[str, Callable[[dict], dict]] = {
    "bf16": lambda latent: {**latent, "samples": latent["samples"].bfloat16().float()},
    "bf16 kept": lambda latent: {**latent, "samples": latent["samples"].bfloat16()},
    "fp16": lambda latent: {**latent, "samples": latent["samples"].half().float()},
    "saved and loaded": lambda latent: {"samples": saved_and_loaded(latent["samples"])},
    "normalised and back": lambda latent: {
        **latent,
        "samples": WAN.process_out(WAN.process_in(latent["samples"].bfloat16())).float(),
    },
    "repeated": lambda latent: node("RepeatLatentBatch")(latent, 2)[0],
    "cut along time": lambda latent: {**latent, "samples": latent["samples"][:, :, -2:]},
    "resized in bf16": lambda latent: node("LatentUpscale")(
        {**latent, "samples": latent["samples"].bfloat16()}, "bilinear", 96, 80, "disabled"
    )[0],
    **{
        f"resized, {method}": lambda latent, method=method: node("LatentUpscale")(latent, method, 96, 80, "disabled")[0]
        for method in ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
    },
}


def saved_and_loaded(samples: Tensor) -> Tensor:
    """Through the file of core's Save Latent and Load Latent."""
    name = "waiting.latent"
    folder = Path(folder_paths.get_input_directory())
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"latent_tensor": samples.contiguous(), "latent_format_version_0": torch.tensor([])}
    save_file(tensors, folder / name)
    return node("LoadLatent")(name)[0]["samples"]


@pytest.mark.parametrize("trip", ROUND_TRIPS)
@pytest.mark.parametrize("given", [False, True], ids=["empty", "behind given frames"])
def test_a_latent_that_waits_for_noise_is_known_after_a_round_trip(
    loaded: Loaded, prompts: Prompts, given: bool, trip: str
) -> None:
    start = from_frames(loaded[2], pictures(1), length=17) if given else node("LongCatLatent")(64, 64, 17)[0]
    latent = ROUND_TRIPS[trip](start)
    with pytest.raises(ValueError, match="The latent is empty: nothing was sampled"):
        node("LongCatDecode")(loaded[2], latent)
    with pytest.raises(ValueError, match="The latent is empty: nothing was sampled"):
        node("LongCatContinueLatent")(latent, 33, 5)
    with pytest.raises(ValueError, match="Mode refine starts from a video, but the latent is empty"):
        node("LongCatSampler")(loaded[0], *prompts, latent, 7, 8, 1.0, "refine")


@pytest.mark.parametrize("model", ["tiny", "toy"])
def test_a_frame_of_one_color_is_not_taken_for_one_that_waits(loaded: Loaded, toy_model: Path, model: str) -> None:
    """Nothing that is encoded is flatter; each has values far from those that wait, in most channels."""
    vae = loaded[2] if model == "tiny" else node("LongCatLoader")(toy_model.name)[2]
    allowed = ROUNDING * WAN.latents_mean.abs()
    for color in itertools.product((0.0, 0.5, 1.0), repeat=3):
        samples = encoded(vae, torch.tensor(color).expand(5, 64, 64, 3))
        for latent in (samples, samples[:, :, :1], samples.bfloat16().float()):
            assert not is_waiting(latent)
            distances = [
                ((latent[:, :, -1:] - value).abs() / allowed).amax((0, 2, 3, 4)) for value in (0, WAN.latents_mean)
            ]
            for distance in distances:
                assert distance.max() > 20
                assert (distance > 1).sum() >= 8


def test_one_sampled_video_in_a_batch_makes_it_no_waiting_one(finished: dict) -> None:
    samples = finished["samples"].clone()
    assert not is_waiting(samples)
    samples[0] = 0
    assert not is_waiting(samples)


@pytest.mark.parametrize(
    ("name", "validated"),
    [
        ("LongCatLoader", ["folder"]),
        ("LongCatLatent", ["height", "length", "size", "width"]),
        ("LongCatContinueLatent", ["length", "num_cond_frames"]),
        ("LongCatRefineLatent", ["height", "num_cond_frames", "size", "width"]),
        ("LongCatSigmas", ["mode", "steps", "threshold"]),
        ("LongCatSampler", ["mode", "steps", "threshold"]),
        ("LongCatBlockSparseAttention", ["cdf", "chunk_frames", "chunk_height", "chunk_width", "sparsity"]),
        (
            "LongCatStoryboard",
            [
                *("filename_prefix", "height", "length", "mode", "num_cond_frames"),
                *("prompts", "segments", "size", "steps", "width"),
            ],
        ),
        (
            "LongCatRefineVideo",
            ["filename_prefix", "height", "length", "num_cond_frames", "size", "steps", "threshold", "width"],
        ),
    ],
)
def test_one_mistake_is_shown_for_these_inputs(name: str, validated: list[str]) -> None:
    """Core repeats the sentence of `validate_inputs` for each input that its signature names."""
    declared = inspect.getfullargspec(find_node(name).validate_inputs)
    inputs = {declared.id for declared in find_node(name).define_schema().inputs}
    assert sorted(inputs.intersection(declared.args)) == validated
    assert declared.varkw is None


def test_nodes_without_checks_leave_validation_to_core() -> None:
    for name in ("LongCatJoin", "LongCatDecode", "LongCatCFGZero", "LongCatKVCache", "LongCatTextEncode"):
        assert "validate_inputs" not in vars(find_node(name))
