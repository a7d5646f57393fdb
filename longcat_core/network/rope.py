"""3D rotary positions: which share of a head each axis gets, and where each token sits.

The rotation itself is ComfyUI's (`EmbedND`, `apply_rope`): interleaved pairs, base 10000, angles in fp32 or better.
"""

from collections.abc import Mapping

import torch

from ..frames.geometry import TokenGrid

ROPE_THETA = 10000


def axes_dim(head_dim: int) -> list[int]:
    """Channels of one head that rotate with time, height and width; `[44, 42, 42]` for a head of 128.

    Raises:
        ValueError: `head_dim` is not a multiple of 8, as the reference requires.
    """
    if head_dim % 8:
        raise ValueError(f"head_dim is {head_dim}; 3D RoPE needs a multiple of 8.")
    spatial = 2 * (head_dim // 6)
    return [head_dim - 2 * spatial, spatial, spatial]


def positions(grid: TokenGrid, device: torch.device, options: Mapping[str, float] | None = None) -> torch.Tensor:
    """Position of every token, fp32 `[1, tokens, 3]` in (time, height, width) order.

    `options` is `transformer_options["rope_options"]`, which ComfyUI's *ScaleROPE* node sets: `scale_t|y|x` stretches
    an axis, `shift_t|y|x` moves its origin, both in tokens.
    """
    options = options or {}
    axes = [
        torch.linspace(start, start + (size - 1) * scale, size, device=device)
        for size, start, scale in (
            (size, options.get(f"shift_{name}", 0.0), options.get(f"scale_{name}", 1.0))
            for size, name in zip(grid, "tyx", strict=True)
        )
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, grid.num_tokens, 3)
