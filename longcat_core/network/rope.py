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


def positions(
    grid: TokenGrid, device: torch.device, options: Mapping[str, float] | None = None, first_frame: int = 0
) -> torch.Tensor:
    """Position of every token, fp32 `[1, tokens, 3]` in (time, height, width) order.

    Args:
        grid: the tokens.
        device: where the positions are.
        options: `transformer_options["rope_options"]`, which ComfyUI's *ScaleROPE* node sets: `scale_t|y|x` stretches
            an axis, `shift_t|y|x` moves its origin, both in tokens.
        first_frame: position of the first latent frame in its video, before it is stretched and moved.
    """
    options = options or {}
    first = TokenGrid(first_frame, 0, 0)
    axes = []
    for size, begin, name in zip(grid, first, "tyx", strict=True):
        scale = options.get(f"scale_{name}", 1.0)
        start = options.get(f"shift_{name}", 0.0) + begin * scale
        axes.append(torch.linspace(start, start + (size - 1) * scale, size, device=device))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, grid.num_tokens, 3)
