"""The pack's public surface in the calling conventions of the reference, for comparing the two.

The reference predicts `clean - noise`, takes text as `[B, 1, N, C]` and packs texts of several lengths into one row.
"""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.ldm.common_dit
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import nodes
import torch
from comfy.k_diffusion.sampling import sample_euler
from comfy.ldm.flux.layers import EmbedND, timestep_embedding
from comfy.ldm.flux.math import apply_rope
from torch import Tensor

from longcat_core import guidance, rope, schedule
from longcat_core.geometry import TokenGrid
from longcat_core.model import TEXT_MASK, LongCatVideoTransformer, ffn_hidden_size


def build_network(config: dict, state: dict, dtype: torch.dtype, operations: Any) -> LongCatVideoTransformer:
    """A network of the given reference config with the given weights."""
    arguments = {name: config[name] for name in inspect.signature(LongCatVideoTransformer).parameters if name in config}
    arguments["ffn_hidden_size"] = ffn_hidden_size(config["hidden_size"], config["mlp_ratio"])
    arguments["patch_size"] = tuple(config["patch_size"])
    network = LongCatVideoTransformer(**arguments, dtype=dtype, operations=operations)
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False)


class Network:
    """The network, called like the reference's."""

    is_toy = False

    def __init__(self, config: dict, state: dict, dtype: torch.dtype, operations: Any) -> None:
        self.config, self.state = config, state
        self.module = build_network(config, state, dtype, operations)

    def __call__(
        self, hidden_states: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None, num_cond_latents: int = 0
    ) -> Tensor:
        return -self.module(hidden_states, timestep, text[:, 0], mask, num_cond_latents=num_cond_latents)

    def patcher(self) -> Any:
        """The same weights as a ComfyUI model, loaded by ComfyUI."""
        patcher = comfy.sd.load_diffusion_model_state_dict(dict(self.state))
        patcher.model.diffusion_model.text_tokens_zero_pad = self.config["text_tokens_zero_pad"]
        return patcher


class Adapter:
    """What a golden case can ask for; see `test_goldens.py`."""

    def __init__(self, operations: Any = comfy.ops.disable_weight_init) -> None:
        self.operations = operations

    def dit(self, config: dict, state: dict, dtype: torch.dtype, loras: list[tuple[Path, float]]) -> Network:
        """The whole network."""
        if loras:
            raise NotImplementedError("LoRA files of the reference are not supported yet")
        return Network(config, state, dtype, self.operations)

    def rope(self, q: Tensor, k: Tensor, grid: tuple[int, int, int], head_dim: int) -> tuple[Tensor, Tensor]:
        """Rotary embedding of queries and keys `[B, heads, N, head_dim]`."""
        return apply_rope(q, k, rope_freqs(grid, head_dim))

    def schedule(self, num_steps: int, shift: float, mode: Any, threshold: float | None) -> tuple[Tensor, Tensor]:
        """Timesteps and sigmas."""
        sigmas = schedule.sigmas(mode, num_steps, shift, threshold or schedule.DEFAULT_REFINE_THRESHOLD)
        return 1000 * sigmas[:-1], sigmas

    def sample(self, loop: str, dit: Any, inputs: dict, args: dict) -> dict[str, Tensor]:
        """Latents to latents: the stand-in networks with core's Euler, a real one with the whole of ComfyUI."""
        if loop != "t2v":
            raise NotImplementedError(f"the {loop} loop is not supported yet")
        mode: schedule.Mode = "distill" if args.get("use_distill") else "base"
        sigmas = schedule.sigmas(mode, args["N"], args["shift"])
        run = euler_loop if dit.is_toy else comfy_loop
        return {**run(dit, inputs, args["guidance"], sigmas), "sigmas": sigmas, "timesteps": 1000 * sigmas[:-1]}

    def piece(self, kind: str, case: str, config: dict, state: dict, inputs: dict, args: dict) -> Tensor:
        """One module on its own."""
        network = build_network(config, state, torch.float32, self.operations)
        call = PIECES[kind]
        return call(network, SimpleNamespace(**inputs), SimpleNamespace(**args))


def rope_freqs(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """Rotation of every token of a grid."""
    embed = EmbedND(dim=head_dim, theta=rope.ROPE_THETA, axes_dim=rope.axes_dim(head_dim))
    return embed(rope.positions(TokenGrid(*grid), torch.device("cpu")))


def euler_loop(dit: Any, inputs: dict, guidance_scale: float, sigmas: Tensor) -> dict[str, Tensor]:
    """Core's Euler around a stand-in network and our guidance."""
    positive = (inputs["prompt_embeds"], inputs["prompt_mask"])
    negative = (inputs.get("neg_embeds"), inputs.get("neg_mask"))
    scales = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        timestep = 1000 * sigma
        if guidance_scale == 1:
            velocity = -dit(x, timestep, *positive)
        else:
            texts, masks = (torch.cat(pair) for pair in zip(negative, positive, strict=True))
            both = dit(torch.cat([x, x]), torch.cat([timestep, timestep]), texts, masks)
            uncond, cond = both.neg().chunk(2)
            scales.append(guidance.projection_scale(cond, uncond).flatten())
            velocity = guidance.cfg_zero(cond, uncond, guidance_scale)
        return x - sigma.view(-1, 1, 1, 1, 1) * velocity

    final = sample_euler(denoise, inputs["latents"] * sigmas[0], sigmas, disable=True)
    return {"final": final, "st_star": torch.stack(scales)} if scales else {"final": final}


def comfy_loop(dit: Network, inputs: dict, guidance_scale: float, sigmas: Tensor) -> dict[str, Tensor]:
    """ComfyUI's own sampling of a model that it loaded, with the node LongCatCFGZero."""
    model = nodes.NODE_CLASS_MAPPINGS["LongCatCFGZero"].execute(dit.patcher()).args[0]
    positive = [[inputs["prompt_embeds"][:, 0], {"attention_mask": inputs["prompt_mask"]}]]
    negative = positive
    if "neg_embeds" in inputs:
        negative = [[inputs["neg_embeds"][:, 0], {"attention_mask": inputs["neg_mask"]}]]
    noise = inputs["latents"]
    euler = comfy.samplers.sampler_object("euler")
    final = comfy.sample.sample_custom(
        model, noise, guidance_scale, euler, sigmas, positive, negative, torch.zeros_like(noise), disable_pbar=True
    )
    return {"final": model.model.process_latent_in(final)}


def unpack_text(cond: Tensor, lengths: list[int]) -> tuple[Tensor, dict]:
    """Texts packed into one row `[1, sum, C]` to `[B, longest, C]`, with the options that hide the padding."""
    rows = cond[0].split(lengths)
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    hidden = torch.arange(padded.shape[1]) >= torch.tensor(lengths)[:, None]
    return padded, {TEXT_MASK: hidden.unsqueeze(1) * torch.finfo(padded.dtype).min}


def tokens_of(args: Any) -> int:
    """Condition tokens of a piece."""
    return args.num_cond_latents * TokenGrid(*args.shape).tokens_per_frame


def cross_attention(network: LongCatVideoTransformer, i: Any, a: Any) -> Tensor:
    """Cross-attention; the reference returns zeros for condition tokens, we do not compute them."""
    text, options = unpack_text(i.cond, a.kv_seqlen)
    out = network.blocks[0].cross_attn(i.x[:, tokens_of(a) :], text, options)
    return torch.nn.functional.pad(out, (0, 0, tokens_of(a), 0))


def block(network: LongCatVideoTransformer, i: Any, a: Any) -> Tensor:
    """A whole block; without cross-attention all of its tokens are condition tokens."""
    text, options = unpack_text(i.cond, a.kv_seqlen)
    num_cond_tokens = i.x.shape[1] if a.skip_crs_attn else tokens_of(a)
    return network.blocks[0](i.x, text, i.t, rope_freqs(a.shape, 64), num_cond_tokens, options)


PIECES = {
    "x_embedder": lambda net, i, a: net.x_embedder(i.x),
    "t_embedder": lambda net, i, a: net.t_embedder(i.t),
    "timestep_embedding": lambda net, i, a: timestep_embedding(i.t, a.dim, time_factor=1.0),
    "y_embedder": lambda net, i, a: net.y_embedder(i.y),
    "blocks.0.ffn": lambda net, i, a: net.blocks[0].ffn(i.x),
    "blocks.0.attn.q_norm": lambda net, i, a: net.blocks[0].attn.q_norm(i.x),
    "blocks.0.pre_crs_attn_norm": lambda net, i, a: net.blocks[0].pre_crs_attn_norm(i.x),
    "final_layer": lambda net, i, a: net.final_layer(i.x, i.t),
    "blocks.0.attn": lambda net, i, a: net.blocks[0].attn(i.x, rope_freqs(a.shape, 64), tokens_of(a), {}),
    "blocks.0.cross_attn": cross_attention,
    "blocks.0": block,
}
