"""Refinement: from a finished video to its latent, through a sampler, to twice the frames at the new size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inprocess import find_node, node
from torch import Tensor

from longcat_core import schedule
from longcat_core.frames import buckets
from longcat_core.frames.comfyui import LATENT_FORMAT
from longcat_core.frames.refine import RefineFrames
from longcat_core.frames.shown import SHOWN_FRAMES, check_says_what_is_shown
from longcat_core.sparse.attention import BLOCK_SPARSE, BlockSparse

Loaded = tuple[Any, Any, Any]
SMALL = {"size": "custom", "width": 64, "height": 64}


def video(num_frames: int, height: int = 32, width: int = 48, seed: int = 0) -> Tensor:
    """Random smooth frames `[F, H, W, 3]`."""
    coarse = torch.rand(1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(
        coarse, (max(1, num_frames), height, width), mode="trilinear", align_corners=True
    )
    return smooth[0].movedim(0, -1)[:num_frames]


def refine_latent(loaded: Loaded, frames: Tensor, mode: str = "spatial+temporal", **inputs: Any) -> dict[str, Any]:
    """From *LongCat Refine Latent*, at 64 x 64 pixels unless told."""
    return node("LongCatRefineLatent")(loaded[2], frames, mode, **{**SMALL, **inputs})[0]


def refined(loaded: Loaded, positive: Any, latent: dict, model: Any = None, seed: int = 3, **options: Any) -> dict:
    """Sampled with *LongCat Sampler*."""
    model = loaded[0] if model is None else model
    return node("LongCatSampler")(model, positive, positive, latent, seed, 50, 1.0, "refine", **options)[0]


@pytest.mark.parametrize(
    ("backend", "mode", "num_frames"),
    [
        ("gather", "spatial+temporal", 5),
        ("dense", "spatial+temporal", 8),
        ("gather", "spatial", 16),
        ("gather", "spatial+temporal", 16),
    ],
)
def test_frames_of_the_refined_video(loaded: Loaded, prompts: Any, backend: str, mode: str, num_frames: int) -> None:
    model = loaded[0]
    if backend != "dense":
        (model,) = node("LongCatBlockSparseAttention")(model, 0.75, backend)
    latent = refine_latent(loaded, video(num_frames), mode)
    assert latent["samples"].shape[2] % 4 == 0
    assert "noise_mask" not in latent
    (frames,) = node("LongCatDecode")(loaded[2], refined(loaded, prompts[0], latent, model))
    assert frames.shape == (num_frames * (2 if mode == "spatial+temporal" else 1), 64, 64, 3)


def test_starts_from_the_enlarged_video_under_seeded_noise(loaded: Loaded, prompts: Any) -> None:
    """What the network sees first is the reference's mixture, with noise that the seed gives."""
    model, latent, seen = loaded[0].clone(), refine_latent(loaded, video(8)), []

    def watch(apply: Any, args: dict) -> Tensor:
        seen.append((args["input"].clone(), args["timestep"].clone()))
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(watch)
    out = [refined(loaded, prompts[0], latent, model, seed)["samples"] for seed in (3, 3, 4)]
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    assert [len(seen), *(1000 * sigma.item() for _, sigma in seen[:5])] == pytest.approx(
        [15, *(1000 * schedule.sigmas("refine", 50))[:5].tolist()]
    )
    clean = LATENT_FORMAT.process_in(latent["samples"])
    noise = torch.randn(clean.shape, generator=torch.manual_seed(3))
    assert seen[0][0] == pytest.approx(0.5 * clean + 0.5 * noise, abs=1e-5)


def test_threshold_is_the_first_noise_level(loaded: Loaded, prompts: Any) -> None:
    (sigmas,) = node("LongCatSigmas")(loaded[0], 50, "refine", 0.3)
    assert sigmas[0] == pytest.approx(0.3)
    latent = refine_latent(loaded, video(8))
    (sampler,) = node("KSamplerSelect")("euler")
    (by_parts, _) = node("SamplerCustom")(loaded[0], True, 3, 1.0, prompts[0], prompts[0], sampler, sigmas, latent)
    assert torch.equal(by_parts["samples"], refined(loaded, prompts[0], latent, threshold=0.3)["samples"])
    assert not torch.equal(by_parts["samples"], refined(loaded, prompts[0], latent)["samples"])


@pytest.mark.parametrize(
    ("sparse", "cached", "num_given", "num_cond_frames"),
    [(False, False, 12, 6), (True, False, 1, 26), (True, False, 12, 6), (False, True, 12, 5), (True, True, 12, 6)],
)
def test_condition_frames_stay_as_they_are(
    loaded: Loaded, prompts: Any, sparse: bool, cached: bool, num_given: int, num_cond_frames: int
) -> None:
    """Bit for bit at every call of the network, and to rounding in the result."""
    model, given = loaded[0].clone(), video(num_given, 64, 64, seed=1)
    if sparse:
        (model,) = node("LongCatBlockSparseAttention")(model, 0.5, "gather")
    if cached:
        (model,) = node("LongCatKVCache")(model, "auto")
    latent = refine_latent(loaded, video(8), condition_frames=given, num_cond_frames=num_cond_frames)
    kept = 1 if num_given == 1 else num_cond_frames
    plan = RefineFrames(16, kept)
    n = plan.num_cond_latents
    assert latent["noise_mask"][:, :, :n].eq(0).all()
    assert latent["noise_mask"][:, :, n:].eq(1).all()
    assert latent["samples"].shape[2] == plan.num_latents
    padding = given[-kept:][:1].expand(plan.front, -1, -1, -1)
    expected = node("VAEEncode")(loaded[2], torch.cat([padding, given[-kept:]]))[0]["samples"]
    assert torch.equal(latent["samples"][:, :, :n], expected)

    clean, seen = LATENT_FORMAT.process_in(expected), []

    def watch(apply: Any, args: dict) -> Tensor:
        seen.append(args["input"][:, :, :n])
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(watch)
    out = refined(loaded, prompts[0], latent, model)
    assert seen
    assert all(torch.equal(frames, clean) for frames in seen)
    assert out["samples"][:, :, :n] == pytest.approx(expected, abs=1e-5)
    (frames,) = node("LongCatDecode")(loaded[2], out)
    assert len(frames) == 16


def test_block_sparse_attention_is_the_same_behind_the_cache(loaded: Loaded, prompts: Any) -> None:
    latent = refine_latent(loaded, video(16), condition_frames=video(9, 64, 64, 1), num_cond_frames=9)
    (sparse,) = node("LongCatBlockSparseAttention")(loaded[0], 0.75, "gather")
    (cached,) = node("LongCatKVCache")(sparse, "gpu")
    plain, behind, dense = (
        refined(loaded, prompts[0], latent, model)["samples"] for model in (sparse, cached, loaded[0])
    )
    assert behind == pytest.approx(plain, abs=1e-4)
    assert (plain - dense).abs().max() > 1e-3


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_sparsity_0_is_dense_attention(loaded: Loaded, prompts: Any, cfg: float) -> None:
    """Through a whole sampling run, guided and not, on a grid that is no multiple of the chunk."""
    (model,) = node("LongCatBlockSparseAttention")(loaded[0], 0.0)
    latent = node("LongCatLatent")(80, 112, 21)[0]
    run = [node("LongCatSampler")(m, *prompts, latent, 3, 4, cfg, "base")[0]["samples"] for m in (model, loaded[0])]
    assert run[0] == pytest.approx(run[1], abs=2e-4)


def test_settings_reach_the_network(loaded: Loaded) -> None:
    (model,) = node("LongCatBlockSparseAttention")(loaded[0], 0.9, "gather", 0.5, 2, 3, 4)
    assert model.model_options["transformer_options"][BLOCK_SPARSE] == BlockSparse(0.9, 0.5, (2, 3, 4), "gather")
    assert BLOCK_SPARSE not in loaded[0].model_options["transformer_options"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"frames": video(0)}, "The video to refine has 0 frames; mode spatial\\+temporal needs at least 2"),
        ({"frames": video(1)}, "has 1 frames; .* needs at least 2. Connect .*, or choose mode spatial"),
        ({"frames": video(2), "condition_frames": video(9, 64, 64), "num_cond_frames": 9}, "9 condition frames leave"),
        (
            {"frames": video(8), "condition_frames": video(5, 64, 64), "num_cond_frames": 9},
            "condition_frames holds 5 frames and num_cond_frames is 9",
        ),
        (
            {"frames": video(8), "condition_frames": video(9, 64, 256), "num_cond_frames": 9},
            "condition_frames is 256 x 64 pixels and the refined video 64 x 64: .* different videos",
        ),
        ({"frames": video(8, 16, 160), "size": "720p"}, "160 x 16 pixels is too far from every shape"),
        ({"frames": video(8), "width": 72}, "width must be a multiple of 16 .use 64 or 80., it is 72"),
    ],
)
def test_what_cannot_be_refined_is_said(loaded: Loaded, inputs: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        refine_latent(loaded, **inputs)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 2.0])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    for name in ("LongCatSigmas", "LongCatSampler", "LongCatRefineVideo"):
        said = find_node(name).validate_inputs(steps=50, threshold=threshold)
        assert said == f"threshold is {threshold}; it must be from 0.01 to 0.99."


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0; it must be from 0.0 to 0.999."),
        ({"cdf": 1.5}, "cdf is 1.5; it must be from 0.0 to 0.999."),
        ({"chunk_frames": 0}, "chunk_frames is 0; it must be from 1 to 64."),
    ],
)
def test_settings_out_of_range_are_refused(loaded: Loaded, inputs: dict, said: str) -> None:
    found = find_node("LongCatBlockSparseAttention")
    assert found.validate_inputs(**inputs) == said
    with pytest.raises(ValueError, match="it must be from"):
        found.execute(loaded[0], **{"sparsity": 0.5, **inputs})


def test_a_chunk_larger_than_the_grid_is_said(loaded: Loaded, prompts: Any) -> None:
    (model,) = node("LongCatBlockSparseAttention")(loaded[0], 0.5, chunk_height=8)
    latent = node("LongCatLatent")(64, 64, 17)[0]
    with pytest.raises(ValueError, match=r"chunks of 8 x 4 tokens, and a frame of this video has 4 x 4 .* Lower the"):
        node("LongCatSampler")(model, *prompts, latent, 3, 2, 1.0, "base")


def test_other_models_are_refused() -> None:
    from types import SimpleNamespace

    for name, options in (("LongCatKVCache", ("auto",)), ("LongCatBlockSparseAttention", (0.5,))):
        with pytest.raises(ValueError, match="works with LongCat-Video only; the connected model is str"):
            find_node(name).execute(SimpleNamespace(model="another"), *options)


def test_a_cut_latent_is_said(loaded: Loaded) -> None:
    latent = refine_latent(loaded, video(16))
    cut = {**latent, "samples": latent["samples"][:, :, :4]}
    with pytest.raises(ValueError, match="The latent was cut after LongCat Refine Latent"):
        node("LongCatDecode")(loaded[2], cut)


def test_a_batch_of_refined_videos(loaded: Loaded) -> None:
    latent = refine_latent(loaded, video(6))
    (both,) = node("RepeatLatentBatch")(latent, 2)
    (frames,), (one,) = (node("LongCatDecode")(loaded[2], x) for x in (both, latent))
    assert len(frames) == 24
    assert frames == pytest.approx(torch.cat([one, one]), abs=1e-4)


def test_a_refined_latent_is_not_continued(loaded: Loaded) -> None:
    latent = refine_latent(loaded, video(16))
    with pytest.raises(ValueError, match=r"refined video, which ends with padding. Continue the video before"):
        node("LongCatContinueLatent")(latent, 33, 13)


def test_a_refined_latent_without_padding_is_continued(loaded: Loaded) -> None:
    latent = refine_latent(loaded, video(13), "spatial")
    assert latent[SHOWN_FRAMES] == (0, 13)
    assert node("LongCatContinueLatent")(latent, 33, 13)[0][SHOWN_FRAMES] is None


KEEPING: dict[str, Callable[[dict], dict]] = {
    "LatentUpscale": lambda latent: node("LatentUpscale")(latent, "bilinear", 96, 64, "disabled")[0],
    "RepeatLatentBatch": lambda latent: node("RepeatLatentBatch")(latent, 2)[0],
    "LatentFromBatch": lambda latent: node("LatentFromBatch")(latent, 0, 1)[0],
    "LatentComposite": lambda latent: node("LatentComposite")(latent, latent, 0, 0)[0],
    "LatentAdd": lambda latent: node("LatentAdd")(latent, latent)[0],
    "LatentBlend": lambda latent: node("LatentBlend")(latent, latent, 0.5)[0],
    "LatentBatch": lambda latent: node("LatentBatch")(latent, latent)[0],
    "SetLatentNoiseMask": lambda latent: node("SetLatentNoiseMask")(latent, torch.ones(1, 64, 64))[0],
}


@pytest.mark.parametrize("name", KEEPING)
def test_latent_nodes_of_core_keep_what_is_shown(loaded: Loaded, name: str) -> None:
    for latent in (refine_latent(loaded, video(5)), node("LongCatLatent")(64, 64, 13)[0]):
        assert KEEPING[name](latent)[SHOWN_FRAMES] == latent[SHOWN_FRAMES]


def test_samplers_of_core_keep_what_is_shown(loaded: Loaded, prompts: Any) -> None:
    model, latent = loaded[0], refine_latent(loaded, video(5))
    (sigmas,), (euler,) = node("LongCatSigmas")(model, 50, "refine"), node("KSamplerSelect")("euler")
    (guider,), (noise,) = node("BasicGuider")(model, prompts[0]), node("RandomNoise")(3)
    sampled = [
        *node("SamplerCustomAdvanced")(noise, guider, euler, sigmas, latent),
        *node("SamplerCustom")(model, True, 3, 1.0, prompts[0], prompts[0], euler, sigmas, latent),
        node("KSampler")(model, 3, 2, 1.0, "euler", "longcat", prompts[0], prompts[0], latent, 0.5)[0],
    ]
    assert [found[SHOWN_FRAMES] for found in sampled] == [(0, 10)] * 5


def test_every_latent_of_our_nodes_says_what_is_shown(loaded: Loaded) -> None:
    vae, image = loaded[2], video(1, 64, 64)
    (empty,) = node("LongCatLatent")(64, 64, 13)
    (given,) = node("LongCatLatent")(64, 64, 13, 2, vae, image)
    finished = {"samples": torch.randn(1, 16, 4, 8, 8), SHOWN_FRAMES: None}
    (continued,) = node("LongCatContinueLatent")(finished, 13, 5)
    assert [latent[SHOWN_FRAMES] for latent in (empty, given, continued)] == [None] * 3
    assert refine_latent(loaded, video(5))[SHOWN_FRAMES] == (0, 10)


def test_a_whole_video_is_decoded_whole_after_it_was_cut_or_joined(loaded: Loaded) -> None:
    whole = {"samples": torch.randn(1, 16, 4, 8, 8), SHOWN_FRAMES: None}
    (cut,), (twice,) = node("LatentCut")(whole, "t", 1, 2), node("LatentConcat")(whole, whole, "t")
    assert [len(node("LongCatDecode")(loaded[2], latent)[0]) for latent in (cut, twice)] == [5, 29]


@pytest.mark.parametrize("size", [(704, 1280), (960, 960)])
def test_a_reloaded_refined_latent_is_refused(loaded: Loaded, size: tuple[int, int]) -> None:
    """Save Latent and Load Latent keep nothing but the samples: which of them are padding is not known any more."""
    reloaded = {"samples": torch.randn(1, 16, 48, size[0] // 8, size[1] // 8)}
    said = f"48 latent frames of {size[1]} x {size[0]} pixels, but does not say which of its frames are padding"
    with pytest.raises(ValueError, match=said):
        node("LongCatDecode")(loaded[2], reloaded)
    with pytest.raises(ValueError, match=said):
        node("LongCatContinueLatent")(reloaded, 33, 5)


def test_what_may_not_be_refined_is_decoded(caplog: pytest.LogCaptureFixture) -> None:
    """A video of 93 frames at 1280 x 704, from an empty latent of core's or out of a storyboard's file."""
    with caplog.at_level("INFO"):
        check_says_what_is_shown({"samples": torch.zeros(1, 16, 24, 88, 160)}, "LongCat Decode")
    assert "does not say which of its 93 frames are the video" in caplog.text


def test_of_a_reloaded_latent_of_another_size_the_log_says_what_may_be_padding(
    loaded: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    latent = refine_latent(loaded, video(5))
    (frames,) = node("LongCatDecode")(loaded[2], latent)
    assert "may be" not in caplog.text
    with caplog.at_level("INFO"):
        (reloaded,) = node("LongCatDecode")(loaded[2], {"samples": latent["samples"]})
    assert (len(frames), len(reloaded)) == (10, 13)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("LongCat Decode")]
    assert len(lines) == 1
    assert "does not say which of its 13 frames are the video" in lines[0]


def test_every_refined_bucket_is_whole_chunks() -> None:
    for size in buckets.BUCKETS[buckets.REFINED]:
        assert size.height % 64 == size.width % 64 == 0


def test_shown_frames_survive_the_sampler(loaded: Loaded, prompts: Any) -> None:
    latent = refine_latent(loaded, video(5))
    assert refined(loaded, prompts[0], latent)[SHOWN_FRAMES] == latent[SHOWN_FRAMES] == (0, 10)
