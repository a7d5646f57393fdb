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

import dataclasses
from typing import Any

import comfy.ldm.common_dit
import comfy.model_prefetch
import comfy.ops
import comfy.patcher_extension
import torch
from comfy.ldm.flux.layers import EmbedND, timestep_embedding
from einops import rearrange
from torch import Tensor, nn

from ..frames.geometry import LATENT_CHANNELS, PATCH_SIZE, LatentShape, TokenGrid, up_to_multiple
from ..sparse.attention import BLOCK_SPARSE
from . import rope
from .attention import NORM_EPS, CrossAttention, SelfAttention
from .call import NOTHING, Call, Past
from .kv_cache import KVCache
from .spans import by_spans

FFN_MULTIPLE = 256
MLP_RATIO = 4


def ffn_hidden_size(hidden_size: int, mlp_ratio: float = MLP_RATIO) -> int:
    """SwiGLU width of the reference: two thirds of the plain MLP's, rounded up to a multiple of 256 (11008 at 4096)."""
    return up_to_multiple(int(2 * hidden_size * mlp_ratio / 3), FFN_MULTIPLE)


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
        return rearrange(self.proj(x), "b c t h w -> b (t h w) c").contiguous()


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
        self, x: Tensor, context: Tensor, t_emb: Tensor, rotation: Tensor, call: Call, transformer_options: dict
    ) -> Tensor:
        """Tokens `[B, N, C]`, text `[B, M, C]`, fp32 timestep embedding `[B, T, adaln_dim]` to tokens `[B, N, C]`."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(t_emb)
        attended = self.attn(by_spans(modulate, x, shift_msa, scale_msa), rotation, call, transformer_options)
        x = by_spans(gated_residual, x, gate_msa, attended)
        x = self.noise_tokens_see_text(x, context, call, transformer_options)
        return by_spans(self.feed_forward, x, shift_mlp, scale_mlp, gate_mlp)

    def noise_tokens_see_text(self, x: Tensor, context: Tensor, call: Call, transformer_options: dict) -> Tensor:
        """Tokens `[B, N, C]`, of which all but those of condition frames take something from the text `[B, M, C]`."""

        def see_text(x: Tensor) -> Tensor:
            return x + self.cross_attn(self.pre_crs_attn_norm(x), context, call, transformer_options)

        n = call.num_cond_tokens
        if n == 0:
            return by_spans(see_text, x)
        return x if n == x.shape[1] else torch.cat([x[:, :n], by_spans(see_text, x[:, n:])], dim=1)

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
        return by_spans(self.modulated, x, shift, scale)

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Tokens `[B, N, C]` as `forward` returns them; modulation as in `modulate`."""
        return self.linear(modulate(x.float(), shift, scale))


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
            self._forward,
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
            kv_cache=kv_cache,
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
        kv_cache: KVCache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """What is cached is cut off and comes back as 0; the network runs on the rest."""
        past = self.past(x, num_cond_latents, context, kv_cache, transformer_options)
        n = past.num_latents
        timestep = timestep.view(len(timestep), -1).expand(-1, x.shape[2])
        call = self.call(x[:, :, n:], num_cond_latents - n, past, transformer_options)
        velocity = self.velocity(x[:, :, n:], timestep[:, n:], context, context_mask, call, transformer_options)
        return nn.functional.pad(velocity, (0, 0, 0, 0, n, 0))

    def past(
        self, x: Tensor, num_cond_latents: int, context: Tensor, kv_cache: KVCache | None, transformer_options: dict
    ) -> Past:
        """Keys and values of condition frames that a cache holds, recorded first if they are new; as `forward`."""

        def record(given: Tensor, recording: Past) -> None:
            call = self.call(given, num_cond_latents, recording, transformer_options)
            still = given.new_zeros(1, num_cond_latents)
            self.velocity(given, still, context[:1], None, call, transformer_options)

        return kv_cache.past(x, num_cond_latents, record, transformer_options) if kv_cache else NOTHING

    def call(self, x: Tensor, num_cond_latents: int, past: Past, transformer_options: dict) -> Call:
        """What all blocks need to know of a call with the latent `[B, 16, T, H, W]`; `embed_text` adds the mask."""
        grid = LatentShape(*x.shape[2:]).grid(self.patch_size)
        return Call(grid, num_cond_latents, past=past, sparse=transformer_options.get(BLOCK_SPARSE))

    def velocity(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        context_mask: Tensor | None,
        call: Call,
        transformer_options: dict,
    ) -> Tensor:
        """Embed, blocks, final layer, crop; arguments as `forward`'s, timesteps `[B, T]`."""
        tokens = self.x_embedder(x)
        t_emb = self.t_embedder(timestep.to(x.dtype).float())
        context, text_mask = self.embed_text(context, context_mask)
        rotation = self.rotation(call, x.device, transformer_options)
        call = dataclasses.replace(call, text_mask=text_mask)
        tokens = self.run_blocks(tokens, context, t_emb, rotation, call, transformer_options)
        patches = self.final_layer(tokens, t_emb)
        return -self.unpatchify(patches, call.grid)[:, :, :, : x.shape[3], : x.shape[4]]

    def rotation(self, call: Call, device: torch.device, transformer_options: dict) -> Tensor:
        """Rotations of all tokens, 2 x 2 matrices `[1, N, 1, head_dim / 2, 2, 2]`."""
        positions = rope.positions(call.grid, device, transformer_options.get("rope_options"), call.first_frame)
        return self.rope_embedder(positions).transpose(1, 2)

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
        self, x: Tensor, context: Tensor, t_emb: Tensor, rotation: Tensor, call: Call, transformer_options: dict
    ) -> Tensor:
        """Run every block, honouring ComfyUI's weight prefetching; arguments as `Block.forward`'s."""
        options = {**transformer_options, "grid_sizes": call.grid, "total_blocks": len(self.blocks)}
        queue = comfy.model_prefetch.make_prefetch_queue(list(self.blocks), x.device, transformer_options)
        for index, block in enumerate(self.blocks):
            comfy.model_prefetch.prefetch_queue_pop(queue, x.device, block)
            in_block = {**options, "block_type": "double", "block_index": index}
            x = run_block(block, x, context, t_emb, rotation, call, in_block)
        comfy.model_prefetch.prefetch_queue_pop(queue, x.device, None)
        return x

    def unpatchify(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """Patches `[B, N, patch volume * channels]` to `[B, channels, T, H, W]`."""
        frames, height, width = grid
        pt, ph, pw = self.patch_size
        pattern = "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)"
        return rearrange(patches, pattern, t=frames, h=height, w=width, pt=pt, ph=ph, pw=pw)


def run_block(
    block: Block, x: Tensor, context: Tensor, t_emb: Tensor, rotation: Tensor, call: Call, transformer_options: dict
) -> Tensor:
    """Run a block, or what another node has put in its place: core's contract for such replacements."""

    def original(args: dict) -> dict:
        return {
            "img": block(args["img"], args["txt"], args["vec"], args["pe"], call, args["transformer_options"]),
        }

    args = {"img": x, "txt": context, "vec": t_emb, "pe": rotation, "transformer_options": transformer_options}
    replacements = transformer_options.get("patches_replace", {}).get("dit", {})
    replacement = replacements.get(("double_block", transformer_options["block_index"]))
    return (replacement(args, {"original_block": original}) if replacement else original(args))["img"]
