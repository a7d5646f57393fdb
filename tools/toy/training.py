"""The loop that trains one part of the toy model, with its optimizers, checkpoints and log; tasks.py says what for.

ComfyUI and the pack must be importable, and `comfy.model_management.in_training` set.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from toy.folder import SEED, save
from toy.muon import Muon
from toy.rounds import Round, learning_rate, num_steps
from toy.tasks import Task, dit_task, vae_task

LEARNING_RATES = {"encoder": (0.02, 2e-3), "decoder": (0.02, 2e-3), "dit": (0.014, 2e-3)}  # Muon's and AdamW's
MATRICES = {"encoder": "encoder.", "decoder": "decoder.", "dit": "blocks."}  # what Muon trains
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
LOG_EVERY = 50  # steps
CHECKPOINT_EVERY = 60.0  # seconds


def train(part: str, work: Path, rounds: Sequence[Round]) -> None:
    """Train one part from its last checkpoint through rounds of so many steps; its log is `work/<part>.jsonl`."""
    steps = num_steps(rounds)
    task = dit_task(work, rounds) if part == "dit" else vae_task(part, work, rounds)
    optimizers = list(make_optimizers(task.module, MATRICES[part], LEARNING_RATES[part]))
    checkpoint, log = work / f"{part}.pt", Log(part, steps, work / f"{part}.jsonl")
    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        first = state["step"]
        task.module.load_state_dict(state["module"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    log.rewind(first)
    saved_at = time.monotonic()
    for step in range(first, steps):
        losses = task.loss(step, step_generator(step))
        torch.stack([*losses.values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), CLIP_NORM)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate(step, rounds)
            optimizer.step()
            optimizer.zero_grad()
        log.add(step, losses, task)
        if time.monotonic() - saved_at > CHECKPOINT_EVERY or step + 1 == steps:
            state = {"step": step + 1, "module": task.module.state_dict()}
            save({**state, "optimizers": [optimizer.state_dict() for optimizer in optimizers]}, checkpoint)
            saved_at = time.monotonic()


def step_generator(step: int) -> torch.Generator:
    """Randomness of one step, so that a resumed run sees what an uninterrupted one does; negative for held-out data."""
    return torch.Generator().manual_seed(SEED + 1_000_003 * (step + 1_000_000))


def make_optimizers(module: nn.Module, matrices: str, rates: tuple[float, float]) -> Iterator[torch.optim.Optimizer]:
    """Muon for the matrices and kernels whose name starts with `matrices`, AdamW for all else."""
    by_muon: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_matrix = name.startswith(matrices) and parameter.ndim > 1 and not name.endswith("gamma")
        (by_muon if is_matrix else others).append(parameter)
    for optimizer in (
        Muon(by_muon, lr=rates[0], weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=rates[1], betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        yield optimizer


class Log:
    """Means of the losses since the last line, in a JSON-lines file and on the screen, beside the held-out loss."""

    def __init__(self, part: str, steps: int, path: Path) -> None:
        self.part, self.steps, self.path = part, steps, path
        self.sums: dict[str, list[float]] = {}
        self.started = time.monotonic()
        self.since = 0

    def rewind(self, step: int) -> None:
        """Forget the lines that a continued run will write again."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def add(self, step: int, losses: dict[str, Tensor], task: Task) -> None:
        """Take the losses of a step, and write a line every LOG_EVERY steps."""
        self.since += 1
        for name, value in losses.items():
            self.sums.setdefault(name, []).append(float(value.detach()))
        if (step + 1) % LOG_EVERY and step + 1 != self.steps:
            return
        with torch.no_grad():
            held_out = [float(sum(task.loss(-index, step_generator(-index)).values())) for index in range(1, 5)]
        line = {name: round(sum(values) / len(values), 5) for name, values in sorted(self.sums.items())}
        seconds = (time.monotonic() - self.started) / self.since
        entry = {"step": step + 1, "train": line, "held_out": round(sum(held_out) / len(held_out), 5)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        left = seconds * (self.steps - step - 1) / 60
        print(
            f"{self.part} {step + 1}/{self.steps} {line} held out {entry['held_out']}, {left:.0f} min left", flush=True
        )
        self.sums = {}
