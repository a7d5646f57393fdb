"""What one process of the toy model's training does. `host.imports.use_comfyui` comes before this is imported."""

from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import torch

from toy.folder import export, prepare
from toy.processes import EXPORT, PREPARE
from toy.rounds import ROUNDS
from toy.training import train


def train_parts(parts: Sequence[str], work: Path, dest: Path, speed_up: int) -> None:
    """Do parts of the training in turn.

    Args:
        parts: of the model, or PREPARE or EXPORT.
        work: the folder of the checkpoints and logs.
        dest: the folder to export to.
        speed_up: how many times shorter than the whole recipe.
    """
    torch.set_num_threads(1)
    comfy.model_management.in_training = True  # core's rotary kernel has no gradient, its plain formula has
    for part in parts:
        if part == PREPARE:
            prepare(work)
        elif part == EXPORT:
            export(work, dest)
        else:
            train(part, work, [full._replace(steps=max(1, full.steps // speed_up)) for full in ROUNDS[part]])
