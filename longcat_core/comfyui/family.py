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

from .. import schedule
from ..network.dit import MLP_RATIO, ffn_hidden_size
from ..weights import judge, layouts
from ..weights.folder import CONFIG, check_sizes, setting
from ..weights.stored import InMemory, json_object
from . import lora_adapter
from .model_base import LongCatVideoModel

IMAGE_MODEL = "longcat_video"
SCHEDULER = "longcat"
CONFIG_METADATA = "longcat_config"
"""Where a file's metadata may hold its config.json, and where a folder's is put: core hands metadata to detectors."""
IS_FOREIGN = "is_foreign"
"""Whether there are layers in a quantised form that only this pack knows. It goes from the detector to the family's
config with what the detector found, as core chooses dtypes and operations before it shows the config any tensor."""
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
        if self.unet_config.pop(IS_FOREIGN, False):
            self.quant_config = {"mixed_ops": True}
        # Core's own estimate for Wan, which has the same latent, patch and block structure.
        self.memory_usage_factor = unet_config.get("hidden_size", 4096) / 2222

    def get_model(self, state_dict: dict, prefix: str = "", device: torch.device | None = None) -> LongCatVideoModel:
        """Build the model; ComfyUI loads the weights afterwards."""
        return LongCatVideoModel(self, device=device)

    def clip_target(self, state_dict: dict = {}) -> Any:  # noqa: B006 - core's signature; never modified
        """UMT5-XXL, the same text encoder as Wan's."""
        return comfy.supported_models.WAN21_T2V.clip_target(self, state_dict)

    def process_unet_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The weights of any layout, as the network names them.

        Raises:
            ValueError: a small tensor holds a number that is not finite.
        """
        return judge.read_weights(state_dict)

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint with the names of the released files or, if q, k and v are apart, of the single files."""
        layout = layouts.WAN if self.unet_config["split_projections"] else layouts.OFFICIAL
        named = {layouts.from_network(name, layout): tensor for name, tensor in state_dict.items()}
        return super().process_unet_state_dict_for_saving(named)


def detect(
    state_dict: Mapping[str, Any], prefix: str = "", metadata: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """Constructor arguments of a LongCat-Video DiT from its tensors, or None if they are anything else's.

    Args:
        state_dict: all tensors of a file.
        prefix: of those that count.
        metadata: words beside them; a config among them has to agree with the tensors.

    Raises:
        ValueError: it is one, but damaged, incomplete or LongCat-Video-Avatar, or its config is of another.
    """
    tensors = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    config = judge.read_config(InMemory(tensors).tensors)
    if config is None:
        return None
    named = named_config(metadata)
    settings = {} if named is None else settings_of(named, config)
    return {"image_model": IMAGE_MODEL, **config, **settings, IS_FOREIGN: judge.is_foreign(tensors)}


def named_config(metadata: Mapping[str, str] | None) -> dict[str, Any] | None:
    """The config that metadata hold, None if they hold none.

    Raises:
        ValueError: it is no JSON object.
    """
    text = (metadata or {}).get(CONFIG_METADATA)
    return None if text is None else json_object(CONFIG_METADATA, text)


def settings_of(named: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says that the tensors do not show.

    Args:
        named: the config.
        config: constructor arguments read from the tensors.

    Raises:
        ValueError: the two are of different models, or a setting is of a wrong kind.
    """
    zero_pad = setting(CONFIG, named, "text_tokens_zero_pad", bool, "true or false", True)
    mlp_ratio = setting(CONFIG, named, "mlp_ratio", int | float, "a number", MLP_RATIO)
    check_sizes({**named, "ffn_hidden_size": ffn_hidden_size(config["hidden_size"], mlp_ratio)}, config)
    return {"text_tokens_zero_pad": zero_pad}


def core_then_longcat(core_detect: Detector) -> Detector:
    """Core's detector, followed by ours where core found nothing. A config of ours makes any other finding an error."""

    @functools.wraps(core_detect)
    def detect_unet_config(state_dict: dict, key_prefix: str, metadata: dict | None = None) -> dict[str, Any] | None:
        found = core_detect(state_dict, key_prefix, metadata=metadata)
        found = found if found is not None else detect(state_dict, key_prefix, metadata)
        if CONFIG_METADATA in (metadata or {}):
            check_family(found)
        return found

    detect_unet_config.longcat_video = True  # type: ignore[attr-defined] # a mark on a function
    return detect_unet_config


def check_family(found: Mapping[str, Any] | None) -> None:
    """Raise ValueError unless a detector found LongCat-Video."""
    kind = (found or {}).get("image_model")
    if kind != IMAGE_MODEL:
        what = f"a model of type '{kind}'" if kind else "tensors of another model"
        raise ValueError(
            f"it holds {what}, not LongCat-Video. Choose a folder with LongCat-Video weights; "
            f"other models load with the node Load Diffusion Model."
        )


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
    """Add the family, the detector, the scheduler and LoRAs to ComfyUI; a second call changes nothing."""
    if not getattr(comfy.model_detection.detect_unet_config, "longcat_video", False):
        comfy.model_detection.detect_unet_config = core_then_longcat(comfy.model_detection.detect_unet_config)
    if not any(family.unet_config == LongCatVideo.unet_config for family in comfy.supported_models.models):
        comfy.supported_models.models.append(LongCatVideo)
    if SCHEDULER not in comfy.samplers.SCHEDULER_HANDLERS:
        comfy.samplers.SCHEDULER_HANDLERS[SCHEDULER] = comfy.samplers.SchedulerHandler(longcat_scheduler)
        comfy.samplers.SCHEDULER_NAMES.append(SCHEDULER)
    lora_adapter.register()
