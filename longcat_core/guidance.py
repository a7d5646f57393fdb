"""CFG-zero*: classifier-free guidance that first rescales the unconditional velocity onto the conditional one.

With velocities c (conditional), u (unconditional) and guidance scale g:

    a = <c, u> / (|u|^2 + 1e-8)        one number per sample, over channels, frames, height and width
    v = a * u + g * (c - a * u)

Source: "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models" (arXiv 2503.18886); the reference uses
the rescaling at every step and does not zero the first ones.
"""

import torch


def projection_scale(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
    """`a` above, for `[B, ...]` velocities: fp32 `[B, 1, ...]`, ready to multiply with them.

    The sign and any common factor of the two inputs cancel.
    """
    cond, uncond = cond.float(), uncond.float()
    dims = tuple(range(1, cond.ndim))
    return (cond * uncond).sum(dims, keepdim=True) / ((uncond * uncond).sum(dims, keepdim=True) + 1e-8)


def cfg_zero(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Guided velocity of conditional and unconditional velocities `[B, ...]`."""
    aligned = projection_scale(cond, uncond) * uncond
    return aligned + scale * (cond - aligned)


def cfg_zero_denoised(
    x: torch.Tensor, guided: torch.Tensor, cond_denoised: torch.Tensor, uncond_denoised: torch.Tensor, scale: float
) -> torch.Tensor:
    """Turn ordinary guidance of denoised predictions into CFG-zero*.

    ComfyUI guides the denoised prediction `x - sigma * v`. In those terms CFG-zero* differs from ordinary guidance by
    exactly `(1 - a) * (1 - g) * (x - uncond_denoised)`, whatever sigma is; as a correction it composes with other
    post-CFG hooks. Core's *CFGZeroStar* node rescales the denoised prediction instead of the velocity, which is off by
    `(1 - a) * (g - 1) * x` for a flow model.

    All tensors are `[B, ...]`: the noisy sample, core's guided result, and the two predictions it was made of.
    """
    uncond_step = x - uncond_denoised
    alpha = projection_scale(x - cond_denoised, uncond_step)
    return guided + (1 - alpha) * (1 - scale) * uncond_step
