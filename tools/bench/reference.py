"""The original implementation of LongCat-Video's network, taken from a checkout of its repository, run on a CPU.

Stand-ins take the place of what it imports but a CPU lacks: flash-attn becomes torch's scaled dot-product attention,
and block-sparse attention, which the measured path does not use, becomes an error.
"""

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Original(nn.Module):
    """The original network in its released config but for its sizes, fp32, with torch's default random weights."""

    def __init__(self, checkout: Path, hidden_size: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.network = _import_from(checkout).LongCatVideoTransformer3DModel(
            hidden_size=hidden_size,
            num_heads=num_heads,
            depth=depth,
            enable_flashattn2=True,
            cp_split_hw=[1, 1],
            text_tokens_zero_pad=True,
        )
        self.eval().requires_grad_(False)

    def forward(self, latent: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Velocity `clean - noise` of a noisy latent `[B, 16, T, H, W]`.

        Args:
            latent: noisy latent.
            timestep: `[B]`, 0..1000.
            text: `[B, N, C]`.
            mask: integers `[B, N]`, 1 = real token.
        """
        return self.network(latent, timestep, text[:, None], mask)


def _import_from(checkout: Path) -> ModuleType:
    # The original asks for fp32 autocast on CUDA in many places; at fp32 on a CPU it is neither there nor needed.
    warnings.filterwarnings("ignore", message=".*Disabling autocast", category=UserWarning)
    sys.path.append(str(checkout))
    _stand_in("longcat_video.block_sparse_attention.bsa_interface", flash_attn_bsa_3d=flash_attn_bsa_3d)
    module = importlib.import_module("longcat_video.modules.longcat_video_dit")
    # Only now: the original imports flash-attn when it calls it, and diffusers, imported above, inspects a real one.
    _stand_in("flash_attn", flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)
    return module


def _stand_in(name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None
) -> Tensor:
    """Attention over `[B, N, heads, head_dim]`, with flash-attn's signature."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=softmax_scale).transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> Tensor:
    """Attention over samples packed into `[sum of N, heads, head_dim]`, with flash-attn's signature.

    Takes samples of equal length only, which all are when padding stays in the text: one call is then the fastest way.
    """
    lengths = (max_seqlen_q, max_seqlen_k, max_seqlen_k)
    q, k, v = (x.unflatten(0, (-1, length)) for x, length in zip((q, k, v), lengths, strict=True))
    return flash_attn_func(q, k, v).flatten(0, 1)


def flash_attn_bsa_3d(*_: Any, **__: Any) -> Tensor:
    """Raise NotImplementedError."""
    raise NotImplementedError("Block-sparse attention is not part of this benchmark, which runs on a CPU.")
