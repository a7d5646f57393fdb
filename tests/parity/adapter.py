"""The pack's public surface in the calling conventions of the reference, for comparing the two."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.flux.math import apply_rope
from loops import comfy_loop, loop_sigmas, stand_in_loop
from network import CachedCondition, Network, build_network, rope_freqs
from pieces import PIECES
from torch import Tensor

from longcat_core import schedule


@torch.inference_mode()
def with_loras(state: dict, loras: list[tuple[Path, float]]) -> dict:
    """Weights with LoRA files merged into them by ComfyUI."""
    model = comfy.sd.load_diffusion_model_state_dict({name: tensor.float() for name, tensor in state.items()})
    for path, strength in loras:
        lora = comfy.utils.load_torch_file(str(path), safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, strength, 0)
    comfy.model_management.load_models_gpu([model])
    return {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}


class Adapter:
    """What a golden case can ask for; see `test_goldens.py`."""

    def __init__(self, operations: Any = comfy.ops.disable_weight_init) -> None:
        self.operations = operations

    def dit(self, config: dict, state: dict, dtype: torch.dtype, loras: list[tuple[Path, float]]) -> Network:
        """The whole network."""
        return Network(config, with_loras(state, loras) if loras else state, dtype, self.operations)

    def cache_rows(self, cache: tuple[CachedCondition, ...], first: int, end: int) -> tuple[CachedCondition, ...]:
        """The cache of some videos of a batch."""
        return cache[first:end]

    def cache_kv(self, cache: tuple[CachedCondition, ...], block_index: int) -> tuple[Tensor, Tensor]:
        """Keys before RoPE and values of one block, `[B, heads, N, head_dim]`."""
        k, v = zip(*(row.keys_and_values(block_index) for row in cache), strict=True)
        return torch.cat(k), torch.cat(v)

    def rope(self, q: Tensor, k: Tensor, grid: tuple[int, int, int], head_dim: int) -> tuple[Tensor, Tensor]:
        """Rotary embedding of queries and keys `[B, heads, N, head_dim]`."""
        return apply_rope(q, k, rope_freqs(grid, head_dim))

    def schedule(self, num_steps: int, shift: float, mode: Any, threshold: float | None) -> tuple[Tensor, Tensor]:
        """Timesteps and sigmas."""
        sigmas = schedule.sigmas(mode, num_steps, shift, threshold or schedule.DEFAULT_REFINE_THRESHOLD)
        return 1000 * sigmas[:-1], sigmas

    def sample(self, loop: str, dit: Any, inputs: dict, args: dict) -> dict[str, Tensor]:
        """Latents to latents: the stand-in networks with core's Euler, a real one with the whole of ComfyUI."""
        sigmas = loop_sigmas(loop, args)
        found = stand_in_loop(loop, dit, inputs, args, sigmas) if dit.is_toy else comfy_loop(dit, inputs, args, sigmas)
        return {**found, "sigmas": sigmas, "timesteps": 1000 * sigmas[:-1]}

    def piece(self, kind: str, case: str, config: dict, state: dict, inputs: dict, args: dict) -> Tensor:
        """One module on its own."""
        network = build_network(config, state, torch.float32, self.operations)
        call = PIECES[kind]
        return call(network, SimpleNamespace(**inputs), SimpleNamespace(**args))
