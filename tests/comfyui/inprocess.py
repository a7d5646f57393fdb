"""Call nodes, ComfyUI's and the pack's, as plain functions in this process."""

from collections.abc import Callable
from typing import Any

import comfy_extras.nodes_cfg
import comfy_extras.nodes_context_windows
import comfy_extras.nodes_custom_sampler
import comfy_extras.nodes_easycache
import comfy_extras.nodes_hunyuan
import comfy_extras.nodes_lora_debug
import comfy_extras.nodes_model_advanced
import comfy_extras.nodes_model_merging
import comfy_extras.nodes_post_processing
import comfy_extras.nodes_torch_compile
import nodes
import torch

# isort: split
import comfy_extras.nodes_latent  # behind nodes_post_processing: each imports the other

EXTRAS = (
    comfy_extras.nodes_cfg,
    comfy_extras.nodes_context_windows,
    comfy_extras.nodes_custom_sampler,
    comfy_extras.nodes_easycache,
    comfy_extras.nodes_hunyuan,
    comfy_extras.nodes_latent,
    comfy_extras.nodes_lora_debug,
    comfy_extras.nodes_model_advanced,
    comfy_extras.nodes_model_merging,
    comfy_extras.nodes_torch_compile,
)


def find_node(name: str) -> Any:
    """A node class by its id, among the loaded ones and core's extras."""
    if name in nodes.NODE_CLASS_MAPPINGS:
        return nodes.NODE_CLASS_MAPPINGS[name]
    for module in EXTRAS:
        found = getattr(module, "NODE_CLASS_MAPPINGS", {}).get(name) or getattr(module, name, None)
        if found is not None:
            return found
    raise KeyError(name)


def node(name: str) -> Callable[..., tuple]:
    """A node as a function of its inputs to the tuple of its outputs, run as ComfyUI's executor runs it."""
    found = find_node(name)

    @torch.inference_mode()
    def call(*args: Any, **kwargs: Any) -> tuple:
        if hasattr(found, "GET_SCHEMA"):
            return found.execute(*args, **kwargs).args
        return getattr(found(), found.FUNCTION)(*args, **kwargs)

    return call


def sample(model: Any, prompts: tuple[Any, Any], latent: dict, denoise: float = 1.0, **changes: Any) -> Any:
    """Latents from core's KSampler with the pack's schedule; 4 steps, cfg 4, seed 7 unless changed."""
    options = {"seed": 7, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "longcat"} | changes
    return node("KSampler")(model, *options.values(), *prompts, latent, denoise)[0]["samples"]
