"""The sampling loops of the reference, latents to latents.

`comfy_loop` is all ComfyUI and the pack. `stand_in_loop` is core's Euler, the pack's guidance and a stand-in network;
it reproduces two quirks of the reference:

    guided frames   CFG-zero* scales by the frames that the network is shown: without a cache these include the
                    condition frames, with one they do not (`Denoiser`). ComfyUI's sampling of the pack's model comes to
                    the same, which `comfy_loop` shows.
    bf16 latents    a continuation keeps its latents in the dtype of the network, every other loop in fp32
                    (`StoredLatents`). The pack always keeps them in fp32.
"""

from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import comfy.samplers
import nodes
import torch
from comfy.k_diffusion.sampling import sample_euler
from network import Network
from refine_inputs import refine_start
from torch import Tensor

from longcat_core import guidance, schedule
from longcat_core.frames.comfyui import LATENT_FORMAT
from longcat_core.frames.geometry import LatentShape
from longcat_core.frames.waiting import with_condition


def loop_sigmas(loop: str, args: dict) -> Tensor:
    """The schedule of a loop."""
    mode: schedule.Mode = "base"
    if loop == "refine":
        mode = "refine"
    elif args.get("use_distill"):
        mode = "distill"
    elif args.get("enhance_hf"):
        mode = "enhance_hf"
    return schedule.sigmas(mode, args["N"], args["shift"], args.get("t_thresh", schedule.DEFAULT_REFINE_THRESHOLD))


def patched(model: Any, node: str, *options: Any) -> Any:
    """The model behind one of the pack's MODEL -> MODEL nodes."""
    return nodes.NODE_CLASS_MAPPINGS[node].execute(model, *options).args[0]


def comfy_loop(network: Network, inputs: dict, args: dict, sigmas: Tensor) -> dict[str, Tensor]:
    """ComfyUI's own sampling of a model that it loaded, with the pack's nodes."""
    model = patched(network.patcher(), "LongCatCFGZero")
    if args.get("use_kv_cache"):
        model = patched(model, "LongCatKVCache", "auto")
    positive = [[inputs["prompt_embeds"][:, 0], {"attention_mask": inputs["prompt_mask"]}]]
    negative = positive
    if "neg_embeds" in inputs:
        negative = [[inputs["neg_embeds"][:, 0], {"attention_mask": inputs["neg_mask"]}]]
    noise = inputs["latents"]
    latent: dict[str, Any] = {"samples": torch.zeros_like(noise)}
    if "cond_raw" in inputs:
        latent = with_condition(inputs["cond_raw"], LatentShape(*noise.shape[2:]))
    final = comfy.sample.sample_custom(
        model,
        noise,
        args["guidance"],
        comfy.samplers.sampler_object("euler"),
        sigmas,
        positive,
        negative,
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
    )
    return {"final": model.model.process_latent_in(final)}


@dataclass(frozen=True)
class StoredLatents:
    """The tensor that a loop of the reference keeps its latents in.

    Its dtype is the network's in a continuation, and fp32 in every other loop. Noise and condition frames are rounded
    to it, and the condition frames normalised in it. Without a cache every step is written back into it; with one, the
    first step replaces it by an fp32 tensor.
    """

    dtype: torch.dtype
    written_back: bool

    def normalized(self, condition: Tensor) -> Tensor:
        """Condition frames as the VAE gave them, normalised; by a reciprocal, which in bf16 is not a division."""
        mean, std = (values.to(self.dtype) for values in (LATENT_FORMAT.latents_mean, LATENT_FORMAT.latents_std))
        return ((condition.to(self.dtype) - mean) * (1 / std)).float()

    def rounded(self, latents: Tensor) -> Tensor:
        """Latents as this tensor holds them."""
        return latents.to(self.dtype).float()

    def after_step(self, latents: Tensor) -> Tensor:
        """Latents as they are after a step."""
        return self.rounded(latents) if self.written_back else latents


@dataclass
class Denoiser:
    """A stand-in network with guidance, as core's samplers call a model."""

    dit: Any
    inputs: dict
    guidance_scale: float
    num_cond_latents: int
    cache: Any = None
    scales: list[Tensor] = field(default_factory=list)

    def build_cache(self, condition: Tensor) -> None:
        """Show the network the condition frames alone, at timestep 0, without text."""
        timestep, text = torch.zeros(condition.shape[0], condition.shape[2]), self.inputs["prompt_embeds"]
        _, self.cache = self.dit(condition, timestep, text, None, return_kv=True, skip_crs_attn=True)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Latents `[B, 16, T, H, W]` and sigmas `[B]` to denoised latents; condition frames stay as they are."""
        n = self.num_cond_latents
        shown = x if self.cache is None else x[:, :, n:]
        timestep = (1000 * sigma)[:, None].repeat(1, shown.shape[2])
        if self.cache is None:
            timestep[:, :n] = 0
        velocity = self.velocity(shown, timestep)[:, :, n - x.shape[2] :]
        velocity = torch.cat([torch.zeros_like(x[:, :, :n]), velocity], dim=2)
        return x - sigma.view(-1, 1, 1, 1, 1) * velocity

    def velocity(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Guided velocity of the frames that the network is shown; guidance scales by exactly these."""
        i, options = self.inputs, {"num_cond_latents": self.num_cond_latents, "kv_cache_dict": self.cache}
        if self.guidance_scale == 1:
            return -self.dit(x, timestep, i["prompt_embeds"], i["prompt_mask"], **options)
        text = torch.cat([i["neg_embeds"], i["prompt_embeds"]])
        mask = torch.cat([i["neg_mask"], i["prompt_mask"]])
        both = self.dit(torch.cat([x, x]), torch.cat([timestep, timestep]), text, mask, **options)
        uncond, cond = both.neg().chunk(2)
        self.scales.append(guidance.projection_scale(cond, uncond).flatten())
        return guidance.cfg_zero(cond, uncond, self.guidance_scale)


def stand_in_loop(loop: str, dit: Any, inputs: dict, args: dict, sigmas: Tensor) -> dict[str, Tensor]:
    """Core's Euler around a stand-in network."""
    cached = args.get("use_kv_cache", False)
    stored = StoredLatents(dit.dtype if loop == "vc" else torch.float32, written_back=not cached)
    x, num_cond_latents = refine_start(inputs, args) if loop == "refine" else start(inputs, stored)
    denoiser = Denoiser(dit, inputs, args.get("guidance", 1.0), num_cond_latents)
    if cached:
        denoiser.build_cache(x[:, :, :num_cond_latents])
    for step in sigmas.unfold(0, 2, 1):
        x = stored.after_step(sample_euler(denoiser, x, step, disable=True))
    return {"final": x, "st_star": torch.stack(denoiser.scales)} if denoiser.scales else {"final": x}


def start(inputs: dict, stored: StoredLatents) -> tuple[Tensor, int]:
    """Noise with the condition frames in front, if there are any, and how many."""
    latents = stored.rounded(inputs["latents"])
    if "cond_raw" not in inputs:
        return latents, 0
    condition = stored.normalized(inputs["cond_raw"])
    num_cond_latents = condition.shape[2]
    return torch.cat([condition, latents[:, :, num_cond_latents:]], dim=2), num_cond_latents
