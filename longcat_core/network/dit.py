"""LongCat-Video's diffusion transformer (DiT).

A single stream of video tokens; the prompt enters through cross-attention. Module names are those of the released
checkpoint (1022 tensors at depth 48), so weights, LoRAs and quantisation metadata apply without renaming. With
`split_projections` q, k and v are matrices of their own, for files that hold them so (`layouts.py`).

    input       latent [B, 16, T, H, W], patch (1, 2, 2): T * H/2 * W/2 tokens, time slowest, width fastest
    timestep    1000 * sigma, one value per latent frame, rounded to the compute dtype as the reference does
    text        UMT5 tokens [B, N, C]; padding rows are zeroed *after* the text MLP and then attended like any other
                (`text_tokens_zero_pad`, true in the released config)
    condition   the first `num_cond_latents` latent frames are given: their timestep is 0, they attend only to each
                other, and they do not see the text; all other tokens see everything
    output      velocity `noise - clean` in fp32, the negative of what the network was trained to predict: ComfyUI's
                flow models integrate towards the noise

Modulation, gates, timestep embedding and the final layer are computed in fp32 whatever the weights are stored in.
Source: meituan-longcat/LongCat-Video, `modules/longcat_video_dit.py`, `attention.py`, `blocks.py`, `rope_3d.py`.
"""

import functools
from collections.abc import Iterable
from typing import Any

import comfy.ldm.common_dit
import comfy.model_prefetch
import comfy.ops
import comfy.patcher_extension
import torch
from comfy.ldm.flux.layers import EmbedND, timestep_embedding
from comfy.ldm.flux.math import apply_rope
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ..frames.geometry import LATENT_CHANNELS, PATCH_SIZE, LatentShape, TokenGrid
from ..sparse.attention import BLOCK_SPARSE
from . import rope
from .kv_cache import KV_EXCHANGE, KVCache
from .spans import by_spans

NORM_EPS = 1e-6
TEXT_MASK = "longcat_text_mask"
FFN_MULTIPLE = 256
MLP_RATIO = 4


def ffn_hidden_size(hidden_size: int, mlp_ratio: float = MLP_RATIO) -> int:
    """SwiGLU width of the reference: two thirds of the plain MLP's, rounded up to a multiple of 256 (11008 at 4096)."""
    return -(-int(2 * hidden_size * mlp_ratio / 3) // FFN_MULTIPLE) * FFN_MULTIPLE


def fp32_operations(operations: Any) -> Any:
    """Layer classes that compute in the dtype of their input, for the parts that run in fp32.

    Plain bf16 and fp8 operations reject an fp32 input. Casting ones bring the stored weight to the input's dtype
    instead, which is what the reference's fp32 autocast does; no fp32 copy is kept, and LoRAs still apply. Operations
    of other kinds (mixed precision, GGUF) cast already and are kept, since only they can read their weights.
    """
    rigid = (comfy.ops.disable_weight_init, comfy.ops.fp8_ops, getattr(comfy.ops, "cublas_ops", None))
    return comfy.ops.manual_cast if operations in rigid else operations


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm in fp32, then one shift and scale per latent frame.

    Args:
        x: tokens `[B, N, C]`.
        shift, scale: fp32 `[B, T, 1, C]`.
    """
    normed = nn.functional.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift, per_frame(normed, shift), 1 + scale).view(x.shape).to(x.dtype)


def gated_residual(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """`x + gate * branch` in fp32 with one gate per latent frame; shapes as in `modulate`."""
    return torch.addcmul(per_frame(x, gate), gate, per_frame(branch, gate)).view(x.shape).to(x.dtype)


def per_frame(x: Tensor, frames: Tensor) -> Tensor:
    """View tokens `[B, N, C]` as `[B, T, N/T, C]`, T taken from a `[B, T, 1, C]` modulation tensor."""
    return x.view(x.shape[0], frames.shape[1], -1, x.shape[-1])


def split_heads(projected: Iterable[Tensor], num_heads: int, head_dim: int) -> list[Tensor]:
    """Cut projections `[B, N, parts * C]`, fused or not, into their parts `[B, heads, N, head_dim]`."""
    return [
        part
        for x in projected
        for part in x.view(*x.shape[:2], -1, num_heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    ]


class PatchEmbed(nn.Module):
    """Latent to tokens: one linear map per 1 x 2 x 2 patch, stored as a convolution; odd sizes are padded with 0."""

    def __init__(
        self, in_channels: int, hidden_size: int, patch_size: tuple[int, int, int], operations: Any, **kw: Any
    ):
        super().__init__()
        self.patch_size = patch_size
        self.proj = operations.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size, **kw)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, T, H, W] -> [B, N, C]`."""
        x = comfy.ldm.common_dit.pad_to_patch_size(x, self.patch_size, padding_mode="constant")
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class TimestepEmbedder(nn.Module):
    """Sinusoids of the timestep (0..1000), then a two-layer MLP."""

    def __init__(self, frequency_size: int, embed_dim: int, operations: Any, **kw: Any):
        super().__init__()
        self.frequency_size = frequency_size
        self.mlp = nn.Sequential(
            operations.Linear(frequency_size, embed_dim, **kw), nn.SiLU(), operations.Linear(embed_dim, embed_dim, **kw)
        )

    def forward(self, timestep: Tensor) -> Tensor:
        """Fp32 `[B, T] -> [B, T, embed_dim]`."""
        frequencies = timestep_embedding(timestep.flatten(), self.frequency_size, time_factor=1.0)
        return self.mlp(frequencies).view(*timestep.shape, -1)


class CaptionEmbedder(nn.Module):
    """Text encoder channels to the width of the DiT."""

    def __init__(self, caption_channels: int, hidden_size: int, operations: Any, **kw: Any):
        super().__init__()
        self.y_proj = nn.Sequential(
            operations.Linear(caption_channels, hidden_size, **kw),
            nn.GELU(approximate="tanh"),
            operations.Linear(hidden_size, hidden_size, **kw),
        )

    def forward(self, context: Tensor) -> Tensor:
        """`[B, N, caption_channels] -> [B, N, C]`."""
        return self.y_proj(context)


class SelfAttention(nn.Module):
    """Self-attention over video tokens with RMS-normalised, 3D-rotated queries and keys."""

    def __init__(self, hidden_size: int, num_heads: int, split: bool, operations: Any, **kw: Any):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.projections = ("q_linear", "k_linear", "v_linear") if split else ("qkv",)
        for name in self.projections:
            self.add_module(name, operations.Linear(hidden_size, 3 * hidden_size // len(self.projections), **kw))
        self.q_norm = operations.RMSNorm(self.head_dim, eps=NORM_EPS, **kw)
        self.k_norm = operations.RMSNorm(self.head_dim, eps=NORM_EPS, **kw)
        self.proj = operations.Linear(hidden_size, hidden_size, **kw)

    def forward(self, x: Tensor, rope_freqs: Tensor, num_cond_tokens: int, transformer_options: dict) -> Tensor:
        """`[B, N, C] -> [B, N, C]`; the first `num_cond_tokens` tokens see only each other."""
        return self.proj(self.attended(x, rope_freqs, num_cond_tokens, transformer_options))

    def attended(self, x: Tensor, rope_freqs: Tensor, num_cond_tokens: int, transformer_options: dict) -> Tensor:
        """What the tokens take from each other, before the last projection; arguments as `forward`'s."""
        q, k, v = by_spans(self.rotated, x, rope_freqs.transpose(1, 2), out_dim=3)
        k, v = with_cached_condition(k, v, transformer_options)
        return prefix_causal_attention(q, k, v, num_cond_tokens, transformer_options)

    def rotated(self, x: Tensor, rope_freqs: Tensor) -> Tensor:
        """Tokens `[B, N, C]`, rotations `[1, N, 1, ...]` to queries, keys and values `[3, B, heads, N, head_dim]`."""
        projected = [getattr(self, name)(x) for name in self.projections]
        q, k, v = split_heads(projected, self.num_heads, self.head_dim)
        return torch.stack([*apply_rope(self.q_norm(q), self.k_norm(k), rope_freqs.transpose(1, 2)), v])


def with_cached_condition(k: Tensor, v: Tensor, transformer_options: dict) -> tuple[Tensor, Tensor]:
    """Keys and values as the cache of condition frames hands them on, if there is one (`kv_cache.py`)."""
    exchange = transformer_options.get(KV_EXCHANGE)
    return exchange(transformer_options["block_index"], k, v) if exchange else (k, v)


def prefix_causal_attention(q: Tensor, k: Tensor, v: Tensor, num_prefix: int, transformer_options: dict) -> Tensor:
    """Attention in which the first `num_prefix` tokens see only each other and the rest see everything.

    Two calls instead of one with a mask: exact, and fast attention kernels that take no mask stay usable.

    Args:
        q, k, v: `[B, heads, N, head_dim]`.

    Returns:
        `[B, N, heads * head_dim]`.
    """
    n = num_prefix
    if n in (0, q.shape[2]):
        return video_attention(q, k, v, transformer_options)
    prefix = video_attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], transformer_options)
    rest = video_attention(q[:, :, n:], k, v, transformer_options)
    return torch.cat([prefix, rest], dim=1)


def video_attention(q: Tensor, k: Tensor, v: Tensor, transformer_options: dict) -> Tensor:
    """Attention over whole latent frames, block-sparse if the options ask for it and the keys are a video's.

    Keys of a single latent frame are attended densely, as the reference does for images.

    Args:
        q: `[B, heads, n, head_dim]`.
        k, v: `[B, heads, m, head_dim]`.

    Returns:
        `[B, n, heads * head_dim]`.
    """
    sparse = transformer_options.get(BLOCK_SPARSE)
    if sparse and k.shape[2] > transformer_options["grid_sizes"].tokens_per_frame:
        return sparse(q, k, v, transformer_options["grid_sizes"]).transpose(1, 2).flatten(2)
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True, transformer_options=transformer_options)


class CrossAttention(nn.Module):
    """Attention from video tokens to text tokens, without positions."""

    def __init__(self, hidden_size: int, num_heads: int, split: bool, operations: Any, **kw: Any):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.text_projections = ("k_linear", "v_linear") if split else ("kv_linear",)
        self.q_linear = operations.Linear(hidden_size, hidden_size, **kw)
        for name in self.text_projections:
            self.add_module(name, operations.Linear(hidden_size, 2 * hidden_size // len(self.text_projections), **kw))
        self.q_norm = operations.RMSNorm(self.head_dim, eps=NORM_EPS, **kw)
        self.k_norm = operations.RMSNorm(self.head_dim, eps=NORM_EPS, **kw)
        self.proj = operations.Linear(hidden_size, hidden_size, **kw)

    def forward(self, x: Tensor, context: Tensor, transformer_options: dict) -> Tensor:
        """Video tokens `[B, N, C]` and text tokens `[B, M, C]` to `[B, N, C]`."""
        projected = [self.q_linear(x), *(getattr(self, name)(context) for name in self.text_projections)]
        q, k, v = split_heads(projected, self.num_heads, self.head_dim)
        x = optimized_attention(
            self.q_norm(q),
            self.k_norm(k),
            v,
            self.num_heads,
            mask=transformer_options.get(TEXT_MASK),
            skip_reshape=True,
            transformer_options=transformer_options,
        )
        return self.proj(x)


class FeedForward(nn.Module):
    """SwiGLU without biases: `w2(silu(w1 x) * w3 x)`."""

    def __init__(self, hidden_size: int, ffn_hidden: int, operations: Any, **kw: Any):
        super().__init__()
        self.w1 = operations.Linear(hidden_size, ffn_hidden, bias=False, **kw)
        self.w2 = operations.Linear(ffn_hidden, hidden_size, bias=False, **kw)
        self.w3 = operations.Linear(hidden_size, ffn_hidden, bias=False, **kw)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, C] -> [B, N, C]`."""
        return self.w2(nn.functional.silu(self.w1(x), inplace=True).mul_(self.w3(x)))


class Modulation(nn.Sequential):
    """Adaptive LayerNorm: the timestep embedding to `num_parts` shifts, scales and gates per latent frame."""

    def __init__(self, embed_dim: int, hidden_size: int, num_parts: int, operations: Any, **kw: Any):
        super().__init__(nn.SiLU(), fp32_operations(operations).Linear(embed_dim, num_parts * hidden_size, **kw))
        self.num_parts = num_parts

    def forward(self, t_emb: Tensor) -> tuple[Tensor, ...]:
        """Fp32 `[B, T, embed_dim]` to `num_parts` tensors `[B, T, 1, C]`."""
        return super().forward(t_emb).unsqueeze(2).chunk(self.num_parts, dim=-1)


class Block(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; the first and last are modulated by the timestep."""

    def __init__(
        self, hidden_size: int, num_heads: int, ffn_hidden: int, adaln_dim: int, split: bool, operations: Any, **kw: Any
    ) -> None:
        super().__init__()
        self.adaLN_modulation = Modulation(adaln_dim, hidden_size, 6, operations, **kw)
        self.pre_crs_attn_norm = operations.LayerNorm(hidden_size, eps=NORM_EPS, **kw)
        self.attn = SelfAttention(hidden_size, num_heads, split, operations, **kw)
        self.cross_attn = CrossAttention(hidden_size, num_heads, split, operations, **kw)
        self.ffn = FeedForward(hidden_size, ffn_hidden, operations, **kw)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        t_emb: Tensor,
        rope_freqs: Tensor,
        num_cond_tokens: int,
        transformer_options: dict,
    ) -> Tensor:
        """Tokens `[B, N, C]`, text `[B, M, C]`, fp32 timestep embedding `[B, T, adaln_dim]` to tokens `[B, N, C]`."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(t_emb)
        h = self.attn(by_spans(modulate, x, shift_msa, scale_msa), rope_freqs, num_cond_tokens, transformer_options)
        x = by_spans(gated_residual, x, gate_msa, h)
        if x.shape[1] > num_cond_tokens:
            cond, noise = x[:, :num_cond_tokens], x[:, num_cond_tokens:]
            noise = by_spans(lambda x: self.see_text(x, context, transformer_options), noise)
            x = torch.cat([cond, noise], dim=1)
        return by_spans(self.feed_forward, x, shift_mlp, scale_mlp, gate_mlp)

    def see_text(self, x: Tensor, context: Tensor, transformer_options: dict) -> Tensor:
        """Tokens `[B, N, C]` and what they take from the text `[B, M, C]`."""
        return x + self.cross_attn(self.pre_crs_attn_norm(x), context, transformer_options)

    def feed_forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """Tokens `[B, N, C]` through the modulated feed-forward network; modulation as in `modulate`."""
        return gated_residual(x, gate, self.ffn(modulate(x, shift, scale)))


class FinalLayer(nn.Module):
    """Modulated LayerNorm and a linear map from tokens to patches, in fp32."""

    def __init__(self, hidden_size: int, patch_channels: int, adaln_dim: int, operations: Any, **kw: Any):
        super().__init__()
        self.adaLN_modulation = Modulation(adaln_dim, hidden_size, 2, operations, **kw)
        self.linear = fp32_operations(operations).Linear(hidden_size, patch_channels, **kw)

    def forward(self, x: Tensor, t_emb: Tensor) -> Tensor:
        """`[B, N, C] -> fp32 [B, N, patch volume * out_channels]`."""
        shift, scale = self.adaLN_modulation(t_emb)
        return by_spans(lambda x, *modulation: self.linear(modulate(x.float(), *modulation)), x, shift, scale)


class LongCatVideoTransformer(nn.Module):
    """The network; the module docstring is its specification."""

    def __init__(
        self,
        in_channels: int = LATENT_CHANNELS,
        out_channels: int = LATENT_CHANNELS,
        hidden_size: int = 4096,
        depth: int = 48,
        num_heads: int = 32,
        caption_channels: int = 4096,
        ffn_hidden_size: int = 11008,
        adaln_tembed_dim: int = 512,
        frequency_embedding_size: int = 256,
        patch_size: tuple[int, int, int] = PATCH_SIZE,
        text_tokens_zero_pad: bool = True,
        split_projections: bool = False,
        image_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = comfy.ops.disable_weight_init,
    ) -> None:
        """Sizes default to the released checkpoint's; `image_model` is the name ComfyUI detected and is not used."""
        super().__init__()
        self.dtype = dtype
        self.hidden_size = hidden_size
        self.patch_size = patch_size
        self.out_channels = out_channels
        self.text_tokens_zero_pad = text_tokens_zero_pad
        kw = {"dtype": dtype, "device": device}

        head_dim = hidden_size // num_heads
        self.rope_embedder = EmbedND(dim=head_dim, theta=rope.ROPE_THETA, axes_dim=rope.axes_dim(head_dim))
        self.x_embedder = PatchEmbed(in_channels, hidden_size, patch_size, operations, **kw)
        self.t_embedder = TimestepEmbedder(
            frequency_embedding_size, adaln_tembed_dim, fp32_operations(operations), **kw
        )
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, operations, **kw)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, ffn_hidden_size, adaln_tembed_dim, split_projections, operations, **kw)
            for _ in range(depth)
        )
        patch_volume = patch_size[0] * patch_size[1] * patch_size[2]
        self.final_layer = FinalLayer(hidden_size, patch_volume * out_channels, adaln_tembed_dim, operations, **kw)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        context_mask: Tensor | None = None,
        num_cond_latents: int = 0,
        transformer_options: dict = {},  # noqa: B006 - ComfyUI's calling convention; never modified
        kv_cache: KVCache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Velocity `noise - clean` of a noisy latent, fp32, same shape as `x`.

        Args:
            x: noisy latent `[B, 16, T, H, W]` in the compute dtype; H and W are padded to the patch and cropped back.
            timestep: `[B]` or one per latent frame `[B, T]`, 0..1000.
            context: text encoder output `[B, M, caption_channels]`.
            context_mask: `[B, M]`, 1 = real token, 0 = padding; None means all are real.
            num_cond_latents: number of leading latent frames that are given (their timestep should be 0).
            transformer_options: ComfyUI's per-call options (wrappers, patches, attention override).
            kv_cache: keys and values of the condition frames, kept between calls; their velocity is then 0.
            kwargs: further ComfyUI conditioning such as `control`, which this model has no use for.
        """
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(
            functools.partial(kv_cache.run, self._forward) if kv_cache else self._forward,
            self,
            comfy.patcher_extension.get_all_wrappers(
                comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
            ),
        ).execute(
            x,
            timestep,
            context,
            transformer_options,
            context_mask=context_mask,
            num_cond_latents=num_cond_latents,
            **kwargs,
        )

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        transformer_options: dict,
        context_mask: Tensor | None = None,
        num_cond_latents: int = 0,
        **kwargs: Any,
    ) -> Tensor:
        """Embed, blocks, final layer, crop."""
        shape = LatentShape(*x.shape[2:])
        grid = shape.grid(self.patch_size)

        # embed
        tokens = self.x_embedder(x)
        t_emb = self.embed_timestep(timestep.to(x.dtype), grid)
        context, text_mask = self.embed_text(context, context_mask)
        freqs = self.rope_embedder(rope.positions(grid, x.device, transformer_options.get("rope_options")))

        # blocks
        options = {**transformer_options, "grid_sizes": grid, TEXT_MASK: text_mask}
        num_cond_tokens = num_cond_latents * grid.tokens_per_frame
        tokens = self.run_blocks(tokens, context, t_emb, freqs, num_cond_tokens, options)

        # final layer
        patches = self.final_layer(tokens, t_emb)
        return -self.unpatchify(patches, grid)[:, :, : shape.frames, : shape.height, : shape.width]

    def embed_timestep(self, timestep: Tensor, grid: TokenGrid) -> Tensor:
        """Timesteps `[B]` or `[B, T]`, already rounded to the compute dtype, to fp32 `[B, T, adaln_tembed_dim]`."""
        per_frame_timestep = timestep.view(timestep.shape[0], -1).expand(-1, grid.frames)
        return self.t_embedder(per_frame_timestep.float())

    def embed_text(self, context: Tensor, context_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Text encoder output `[B, M, caption_channels]` to tokens `[B, M, C]` and the attention mask they need.

        With `text_tokens_zero_pad` padding becomes zero tokens and no mask is needed; without, an additive mask
        `[B, 1, M]` hides it.
        """
        tokens = self.y_embedder(context)
        if context_mask is None:
            return tokens, None
        real = context_mask.to(tokens.dtype)
        if self.text_tokens_zero_pad:
            return tokens * real.unsqueeze(-1), None
        return tokens, (1 - real).unsqueeze(1) * torch.finfo(tokens.dtype).min

    def run_blocks(
        self,
        x: Tensor,
        context: Tensor,
        t_emb: Tensor,
        rope_freqs: Tensor,
        num_cond_tokens: int,
        transformer_options: dict,
    ) -> Tensor:
        """Run every block, honouring ComfyUI's block replacements and weight prefetching."""
        replacements = transformer_options.get("patches_replace", {}).get("dit", {})
        queue = comfy.model_prefetch.make_prefetch_queue(list(self.blocks), x.device, transformer_options)
        for index, block in enumerate(self.blocks):
            comfy.model_prefetch.prefetch_queue_pop(queue, x.device, block)
            options = {
                **transformer_options,
                "total_blocks": len(self.blocks),
                "block_type": "double",
                "block_index": index,
            }

            def run(args: dict, block: Block = block) -> dict:
                img, txt, vec, pe = (args[name] for name in ("img", "txt", "vec", "pe"))
                return {"img": block(img, txt, vec, pe, num_cond_tokens, args["transformer_options"])}

            args = {"img": x, "txt": context, "vec": t_emb, "pe": rope_freqs, "transformer_options": options}
            replacement = replacements.get(("double_block", index))
            x = (replacement(args, {"original_block": run}) if replacement else run(args))["img"]
        comfy.model_prefetch.prefetch_queue_pop(queue, x.device, None)
        return x

    def unpatchify(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """`[B, N, (pt ph pw channels)] -> [B, channels, T, H, W]`."""
        (pt, ph, pw), channels = self.patch_size, self.out_channels
        x = patches.view(-1, *grid, pt, ph, pw, channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(-1, channels, grid.frames * pt, grid.height * ph, grid.width * pw)
