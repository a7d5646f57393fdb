"""The pack's network in the calling conventions of the reference.

The reference predicts `clean - noise`, takes text as `[B, 1, N, C]`, and hands its cache of condition frames out of
one call and into others. Here that cache is the pack's `KVCache`, which builds itself inside a call and holds one video
at a time: it travels with its condition frames, one row per video of a batch.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import comfy.sd
import torch
from comfy.ldm.flux.layers import EmbedND
from torch import Tensor

from longcat_core.frames.geometry import LatentShape, TokenGrid
from longcat_core.network import rope
from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size
from longcat_core.network.kv_cache import KVCache
from longcat_core.network.stores import CacheSize


def build_network(config: dict, state: dict, dtype: torch.dtype, operations: Any) -> LongCatVideoTransformer:
    """A network of the given reference config with the given weights."""
    arguments = {name: config[name] for name in inspect.signature(LongCatVideoTransformer).parameters if name in config}
    arguments["ffn_hidden_size"] = ffn_hidden_size(config["hidden_size"], config["mlp_ratio"])
    arguments["patch_size"] = tuple(config["patch_size"])
    network = LongCatVideoTransformer(**arguments, dtype=dtype, operations=operations)
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False)


def rope_freqs(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """Rotation of every token of a grid: 2 x 2 matrices `[1, 1, N, head_dim / 2, 2, 2]`."""
    embed = EmbedND(dim=head_dim, theta=rope.ROPE_THETA, axes_dim=rope.axes_dim(head_dim))
    return embed(rope.positions(TokenGrid(*grid), torch.device("cpu")))


@dataclass(frozen=True)
class CachedCondition:
    """Condition frames `[1, 16, t, H, W]` and the pack's cache of their keys and values."""

    frames: Tensor
    grid: TokenGrid
    cache: KVCache

    def keys_and_values(self, block_index: int) -> tuple[Tensor, Tensor]:
        """Of one block, `[1, heads, N, head_dim]`, keys rotated back: the reference keeps them before RoPE."""
        (kept,) = self.cache.stores
        k, v = kept.store.read(block_index).transpose(2, 3)
        rotation = rope_freqs(self.grid, k.shape[-1])
        inverse = torch.einsum("...ij,...i->...j", rotation, k.unflatten(-1, (-1, 2)))
        return inverse.flatten(-2), v


class Network:
    """The network, called like the reference's."""

    is_toy = False

    def __init__(self, config: dict, state: dict, dtype: torch.dtype, operations: Any) -> None:
        self.config, self.state = config, state
        self.module = build_network(config, state, dtype, operations)
        self.transformer_options: dict[str, Any] = {}

    def __call__(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text: Tensor,
        mask: Tensor | None,
        num_cond_latents: int = 0,
        return_kv: bool = False,
        kv_cache: tuple[CachedCondition, ...] | None = None,
        skip_crs_attn: bool = False,
    ) -> Any:
        """Prediction, with the cache of `hidden_states` if `return_kv`."""
        if return_kv != skip_crs_attn:
            raise NotImplementedError("the pack caches exactly the frames that do not see the text")
        if kv_cache is not None:
            return self.behind(kv_cache, hidden_states, timestep, text, mask)
        if return_kv:
            num_cond_latents = hidden_states.shape[2]
        out = -self.module(hidden_states, timestep, text[:, 0], mask, num_cond_latents, self.transformer_options)
        return (out, self.cached(hidden_states, text)) if return_kv else out

    def cached(self, condition: Tensor, text: Tensor) -> tuple[CachedCondition, ...]:
        """A cache for every row of `condition`, built by calls that also have one noise frame, as all calls have."""
        grid = LatentShape(*condition.shape[2:]).grid(self.module.patch_size)
        width, depth = self.module.hidden_size, len(self.module.blocks)
        size = CacheSize(grid.num_tokens, width, depth, condition.element_size())
        rows = tuple(CachedCondition(frames, grid, KVCache(size, "gpu")) for frames in condition.split(1))
        for row in rows:
            noise = torch.zeros_like(row.frames[:, :, :1])
            self.behind((row,), noise, torch.zeros(1, 1), text[:1], None)
        return rows

    def behind(
        self, rows: tuple[CachedCondition, ...], noise: Tensor, timestep: Tensor, text: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Prediction of noise frames `[B, 16, T, H, W]`, timesteps `[B, T]`, behind one cached row for all or B."""
        if len(rows) > 1:
            masks = [None] * len(rows) if mask is None else mask.split(1)
            batch = zip(rows, noise.split(1), timestep.split(1), text.split(1), masks, strict=True)
            return torch.cat([self.behind((row,), *one) for row, *one in batch])
        (row,) = rows
        condition = row.frames.expand(noise.shape[0], -1, -1, -1, -1)
        num_cond_latents = condition.shape[2]
        out = self.module(
            torch.cat([condition, noise], dim=2),
            torch.nn.functional.pad(timestep, (num_cond_latents, 0)),
            text[:, 0],
            mask,
            num_cond_latents,
            self.transformer_options,
            kv_cache=row.cache,
        )
        assert not row.cache.said, f"the cache was built again or not used: {row.cache.said}"
        return -out[:, :, num_cond_latents:]

    def patcher(self) -> Any:
        """The same weights as a ComfyUI model, loaded by ComfyUI."""
        patcher = comfy.sd.load_diffusion_model_state_dict(dict(self.state))
        patcher.model.diffusion_model.text_tokens_zero_pad = self.config["text_tokens_zero_pad"]
        return patcher
