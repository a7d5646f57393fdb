"""Schedules, guidance and the one-node sampler."""

from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import SamplerCustom

from ..longcat_core import schedule
from ..longcat_core.comfyui import family
from ..longcat_core.frames.waiting import is_waiting
from ..longcat_core.guidance import cfg_zero_denoised
from .checks import checked
from .inputs import cfg_input, check_schedule, mode_input, seed_input, steps_input, threshold_input


def model_sigmas(model: Any, steps: int, mode: schedule.Mode, threshold: float) -> torch.Tensor:
    """A schedule with the shift that the model carries, which ModelSamplingSD3 may have changed."""
    return schedule.sigmas(mode, steps, family.flow_shift(model.get_model_object("model_sampling")), threshold)


def cfg_zero_hook(args: dict[str, Any]) -> torch.Tensor:
    """ComfyUI post-CFG hook; without an unconditional prediction (cfg 1) there is nothing to rescale."""
    if args["uncond_denoised"] is None:
        return args["denoised"]
    return cfg_zero_denoised(
        args["input"], args["denoised"], args["cond_denoised"], args["uncond_denoised"], args["cond_scale"]
    )


def with_cfg_zero(model: ModelPatcher) -> ModelPatcher:
    """A clone of the model that guides with CFG-zero*; a model that does already stays as it is."""
    model = model.clone()
    if cfg_zero_hook not in model.model_options.get("sampler_post_cfg_function", []):
        model.set_model_sampler_post_cfg_function(cfg_zero_hook)
    return model


def sampled(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    steps: int,
    cfg: float,
    mode: schedule.Mode,
    threshold: float = schedule.DEFAULT_REFINE_THRESHOLD,
) -> dict[str, Any]:
    """The LATENT that core's SamplerCustom makes with Euler, CFG-zero* and the schedule of a mode.

    Args:
        model: LongCat-Video.
        positive, negative: CONDITIONING; at cfg 1 the negative one is not used.
        latent: what sampling starts from; its masked leading frames are condition frames.
        seed: of the noise.
        steps: of the schedule, of which mode refine makes the last.
        cfg: guidance scale.
        mode: which schedule.
        threshold: the noise level (0..1) that mode refine starts from.

    Raises:
        ValueError: mode refine and nothing to refine, or as `schedule.sigmas`.
    """
    if mode == "refine" and is_waiting(latent["samples"]):
        raise ValueError(
            "Mode refine starts from a video, but the latent is empty. Connect LongCat Refine Latent, or choose "
            "mode base."
        )
    sigmas = model_sigmas(model, steps, mode, threshold)
    euler = comfy.samplers.sampler_object("euler")
    guided = with_cfg_zero(model)
    return SamplerCustom.execute(guided, True, seed, cfg, positive, negative, euler, sigmas, latent).args[0]


@checked(check_schedule)
class LongCatSigmas(io.ComfyNode):
    """MODEL, steps, mode -> SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatSigmas",
            display_name="LongCat Sigmas",
            category="model/sampling/schedulers",
            description="The four schedules of LongCat-Video, with the model's own shift (12 as released, or what "
            "ModelSamplingSD3 sets). The scheduler 'longcat' of KSampler and BasicScheduler is mode base.",
            search_aliases=["longcat scheduler", "longcat schedule", "distill schedule", "enhance_hf"],
            inputs=[
                io.Model.Input("model", tooltip="Gives the shift."),
                steps_input("50 for base, 16 for distill (at most 50)."),
                mode_input(),
                threshold_input(),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="Noise levels from 1 (refine: threshold) to 0, one more than model calls.")
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, steps: int, mode: schedule.Mode, threshold: float = schedule.DEFAULT_REFINE_THRESHOLD
    ) -> io.NodeOutput:
        """Compute the schedule."""
        return io.NodeOutput(model_sigmas(model, steps, mode, threshold))


class LongCatCFGZero(io.ComfyNode):
    """MODEL -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatCFGZero",
            display_name="LongCat CFG-Zero*",
            category="model/patch",
            description="Guidance as LongCat-Video was released with: the unconditional velocity is rescaled onto the "
            "conditional one before they are mixed. Core's CFGZeroStar is not the same for flow models. "
            "LongCat Sampler has it built in.",
            search_aliases=["cfg zero star longcat", "longcat guidance", "cfg-zero"],
            inputs=[io.Model.Input("model", tooltip="LongCat-Video.")],
            outputs=[io.Model.Output(tooltip="A copy of the model, with this guidance.")],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        """Install the hook on a clone."""
        return io.NodeOutput(with_cfg_zero(model))


@checked(check_schedule)
class LongCatSampler(io.ComfyNode):
    """MODEL, positive, negative, LATENT -> LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatSampler",
            display_name="LongCat Sampler",
            category="model/sampling",
            description="Samples LongCat-Video the way it was released: Euler, CFG-Zero*, the schedule of the chosen "
            "mode. The same numbers as LongCat Sigmas + LongCat CFG-Zero* + SamplerCustomAdvanced.",
            search_aliases=["longcat ksampler", "text to video", "longcat generate", "sample longcat"],
            inputs=[
                io.Model.Input("model", tooltip="LongCat-Video."),
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show; ignored at cfg 1."),
                io.Latent.Input("latent", tooltip="From LongCat Latent, or for refine from LongCat Refine Latent."),
                seed_input("The noise that the video is made from.", control=True),
                steps_input("50; 16 for distill (at most 50). refine makes the last 5 of 50."),
                cfg_input("Guidance scale: 4 for base and enhance_hf; 1 (off, twice as fast) for distill and refine."),
                mode_input(),
                threshold_input(),
            ],
            outputs=[io.Latent.Output(tooltip="The video, for LongCat Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        mode: schedule.Mode,
        threshold: float = schedule.DEFAULT_REFINE_THRESHOLD,
    ) -> io.NodeOutput:
        """Sample."""
        return io.NodeOutput(sampled(model, positive, negative, latent, seed, steps, cfg, mode, threshold))
