"""Recognise a LongCat-Video checkpoint and tell ComfyUI about the model family.

Core looks first and stays in charge of everything it knows; the hook answers only where core found nothing. Once core
detects LongCat-Video itself, this module has no effect.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_detection
import comfy.model_sampling
import comfy.samplers
import comfy.supported_models
import comfy.supported_models_base
import torch

from . import schedule
from .model_base import LongCatVideoModel
from .weights import dit_keys

IMAGE_MODEL = "longcat_video"
SCHEDULER = "longcat"
AVATAR_KEYS = ("audio_proj.proj1.weight", "blocks.0.audio_cross_attn.q_linear.weight")
SIGNATURE_KEYS = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "t_embedder.mlp.2.weight",
    "y_embedder.y_proj.0.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "blocks.0.pre_crs_attn_norm.weight",
    "blocks.0.attn.q_norm.weight",
    "blocks.0.cross_attn.kv_linear.weight",
    "blocks.0.ffn.w1.weight",
    "final_layer.linear.weight",
)
Detector = Callable[..., dict[str, Any] | None]


class LongCatVideo(comfy.supported_models_base.BASE):
    """The model family as `comfy.supported_models` lists it."""

    unet_config: ClassVar[dict[str, Any]] = {"image_model": IMAGE_MODEL}
    unet_extra_config: ClassVar[dict[str, Any]] = {}
    sampling_settings: ClassVar[dict[str, Any]] = {"shift": schedule.DEFAULT_SHIFT, "multiplier": 1000}
    latent_format = comfy.latent_formats.Wan21
    supported_inference_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float32]
    vae_key_prefix: ClassVar[list[str]] = ["vae."]
    text_encoder_key_prefix: ClassVar[list[str]] = ["text_encoders."]

    def __init__(self, unet_config: dict[str, Any]) -> None:
        super().__init__(unet_config)
        # Core's own estimate for Wan, which has the same latent, patch and block structure.
        self.memory_usage_factor = unet_config.get("hidden_size", 4096) / 2222

    def get_model(self, state_dict: dict, prefix: str = "", device: torch.device | None = None) -> LongCatVideoModel:
        """Build the model; ComfyUI loads the weights afterwards."""
        return LongCatVideoModel(self, device=device)

    def clip_target(self, state_dict: dict = {}) -> Any:  # noqa: B006 - core's signature; never modified
        """UMT5-XXL, the same text encoder as Wan's."""
        return comfy.supported_models.WAN21_T2V.clip_target(self, state_dict)

    def process_unet_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Pass the weights through unchanged.

        Raises:
            ValueError: tensors are missing. Core would only warn, and sample noise.
        """
        missing = dit_keys(self.unet_config["depth"]) - state_dict.keys()
        if missing:
            examples = ", ".join(sorted(missing)[:3])
            raise ValueError(
                f"This LongCat-Video checkpoint lacks {len(missing)} tensors, for example {examples}. "
                f"The file is incomplete or was converted wrongly: download it again."
            )
        return state_dict


def is_avatar(state_dict: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether the tensors are LongCat-Video-Avatar's, which shares most names but needs audio conditioning."""
    return any(f"{prefix}{key}" in state_dict for key in AVATAR_KEYS)


def detect(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any] | None:
    """Sizes of a LongCat-Video DiT from its tensors, as constructor arguments, or None if it is anything else.

    Reads only dimensions that quantised files keep.
    """
    if is_avatar(state_dict, prefix) or any(f"{prefix}{key}" not in state_dict for key in SIGNATURE_KEYS):
        return None

    def shape(key: str) -> tuple[int, ...]:
        return tuple(state_dict[f"{prefix}{key}"].shape)

    hidden_size, in_channels, *patch_size = shape("x_embedder.proj.weight")
    return {
        "image_model": IMAGE_MODEL,
        "in_channels": in_channels,
        "out_channels": shape("final_layer.linear.weight")[0] // (patch_size[0] * patch_size[1] * patch_size[2]),
        "hidden_size": hidden_size,
        "depth": comfy.model_detection.count_blocks(list(state_dict), f"{prefix}blocks.{{}}."),
        "num_heads": hidden_size // shape("blocks.0.attn.q_norm.weight")[0],
        "caption_channels": shape("y_embedder.y_proj.0.weight")[1],
        "ffn_hidden_size": shape("blocks.0.ffn.w1.weight")[0],
        "adaln_tembed_dim": shape("t_embedder.mlp.2.weight")[0],
        "frequency_embedding_size": shape("t_embedder.mlp.0.weight")[1],
        "patch_size": tuple(patch_size),
    }


def core_then_longcat(core_detect: Detector) -> Detector:
    """Core's detector, followed by ours where core found nothing."""

    @functools.wraps(core_detect)
    def detect_unet_config(state_dict: dict, key_prefix: str, metadata: dict | None = None) -> dict[str, Any] | None:
        found = core_detect(state_dict, key_prefix, metadata=metadata)
        return found if found is not None else detect(state_dict, key_prefix)

    detect_unet_config.longcat_video = True  # type: ignore[attr-defined] # a mark on a function
    return detect_unet_config


def flow_shift(model_sampling: Any) -> float:
    """Shift of a model's schedule.

    Raises:
        ValueError: the model is not a flow model with a linear shift.
    """
    if not isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
        # Core derives a nameless class from the kind of schedule.
        kind = next((c.__name__ for c in type(model_sampling).__mro__[1:] if c is not object), "something else")
        raise ValueError(
            f"LongCat-Video's schedules were chosen for a model that samples with {kind}, "
            f"which has no such shift. Connect a LongCat-Video model, or choose another scheduler."
        )
    return float(model_sampling.shift)


def longcat_scheduler(model_sampling: Any, steps: int) -> torch.Tensor:
    """The base schedule with the model's own shift, for KSampler and BasicScheduler."""
    return schedule.sigmas("base", steps, shift=flow_shift(model_sampling))


def register() -> None:
    """Add the family, the detector and the scheduler to ComfyUI; a second call changes nothing."""
    if not getattr(comfy.model_detection.detect_unet_config, "longcat_video", False):
        comfy.model_detection.detect_unet_config = core_then_longcat(comfy.model_detection.detect_unet_config)
    if not any(family.unet_config == LongCatVideo.unet_config for family in comfy.supported_models.models):
        comfy.supported_models.models.append(LongCatVideo)
    if SCHEDULER not in comfy.samplers.SCHEDULER_HANDLERS:
        comfy.samplers.SCHEDULER_HANDLERS[SCHEDULER] = comfy.samplers.SchedulerHandler(longcat_scheduler)
        comfy.samplers.SCHEDULER_NAMES.append(SCHEDULER)
