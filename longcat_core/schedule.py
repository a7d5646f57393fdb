"""The four noise schedules of LongCat-Video.

A schedule is a list of sigmas in 1..0: the sample at sigma is `(1 - sigma) * clean + sigma * noise`, and the model is
told the timestep `1000 * sigma`. All but the tail of `enhance_hf` are a plain grid bent by the shift map
`sigma -> shift * sigma / (1 + (shift - 1) * sigma)`; the released scheduler has shift 12.
"""

from typing import Literal, get_args

import torch

Mode = Literal["base", "distill", "enhance_hf", "refine"]
MODES: tuple[Mode, ...] = get_args(Mode)

DEFAULT_SHIFT = 12.0
DEFAULT_REFINE_THRESHOLD = 0.5
DISTILL_GRID = 50
LAST_BASE_SIGMA = 0.001
HF_TAIL = torch.arange(10, 0, -1, dtype=torch.float32) * 0.05


def sigmas(
    mode: Mode, steps: int, shift: float = DEFAULT_SHIFT, threshold: float = DEFAULT_REFINE_THRESHOLD
) -> torch.Tensor:
    """Sigmas of one sampling run: float32 `[n + 1]`, descending, the last one 0.

    base        `steps` sigmas from 1 to 0.001, shifted (reference `get_timesteps_sigmas`, 50 steps)
    distill     `steps` of the 50 sigmas that the distilled LoRA was trained on, shifted (16 steps)
    enhance_hf  base above 0.5, then 0.50, 0.45 ... 0.05 *unshifted*: more steps where detail is made (56 from 50)
    refine      `threshold`, then base below it (5 from 50): starts from an upscaled video with that much noise

    Raises:
        ValueError: unknown mode, fewer than 1 step, more than 50 in distill, shift <= 0, threshold outside 0..1.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}.")
    if steps < 1:
        raise ValueError(f"steps is {steps}; a schedule needs at least 1.")
    if shift <= 0:
        raise ValueError(f"shift is {shift}; it must be above 0 (LongCat-Video was released with {DEFAULT_SHIFT:g}).")
    grid = _distill_grid(steps) if mode == "distill" else torch.linspace(1, LAST_BASE_SIGMA, steps)
    shifted = shift * grid / (1 + (shift - 1) * grid)
    if mode == "enhance_hf":
        shifted = torch.cat([shifted[shifted > HF_TAIL[0]], HF_TAIL])
    if mode == "refine":
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}; it must be between 0 and 1 (0.5 in the reference).")
        shifted = torch.cat([torch.tensor([threshold]), shifted[shifted < threshold]])
    return torch.cat([shifted, torch.zeros(1)])


def _distill_grid(steps: int) -> torch.Tensor:
    """`steps` of the values 1.00, 0.98 ... 0.02, evenly spread over their indices and rounded down."""
    if steps > DISTILL_GRID:
        raise ValueError(f"steps is {steps}; the distilled schedule has {DISTILL_GRID} sigmas to choose from.")
    indices = torch.tensor([i * DISTILL_GRID // steps for i in range(steps)])
    return (DISTILL_GRID - indices).float() / DISTILL_GRID
