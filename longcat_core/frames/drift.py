"""Against the drift of long videos: noise on the frames that a segment continues from, and colors held to the first."""

import torch
from torch import Tensor

from .comfyui import LATENT_FORMAT

CONDITION_NOISE_SEED = 0x9E3779B97F4A7C15  # added to a video's seed, so that the two noises have nothing in common


def lightly_noised(condition: Tensor, sigma: float, seed: int) -> Tensor:
    """Condition frames `[B, 16, t, H, W]` with noise: `(1 - sigma) * clean + sigma * noise` as the model sees them.

    Their timestep stays 0. Training did the same, so that small errors of one segment are not taken for detail by the
    next (the authors in meituan-longcat/LongCat-Video issue 4).
    """
    generator = torch.Generator().manual_seed((seed + CONDITION_NOISE_SEED) % 2**64)
    noise = torch.randn(condition.shape, generator=generator).to(condition)
    return LATENT_FORMAT.process_out((1 - sigma) * LATENT_FORMAT.process_in(condition) + sigma * noise)


def color_anchored(samples: Tensor, anchor: Tensor, strength: float) -> Tensor:
    """Move mean and spread of every latent channel towards those of `anchor`; both `[B, 16, T, H, W]`.

    Color and brightness live in these statistics (adaptive instance normalisation, arXiv 1703.06868); strength 1
    replaces them, 0 keeps the samples.
    """
    if not strength:
        return samples
    dims = (2, 3, 4)
    spread, mean = torch.std_mean(samples, dims, keepdim=True)
    anchor_spread, anchor_mean = torch.std_mean(anchor, dims, keepdim=True)
    return torch.lerp(samples, (samples - mean) / spread.clamp_min(1e-6) * anchor_spread + anchor_mean, strength)
