"""The recipe of the toy model: what each part learns from, and the loop that trains it.

    encoder, decoder   ComfyUI's own Wan VAE, taught to compute the latents of toy_latents.py and to undo them
    dit                this pack's network by flow matching on those latents, for the tasks of the real model (text to
                       video, image to video, continuation), with text dropout for guidance

ComfyUI and the pack must be importable, and `comfy.model_management.in_training` set.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.latent_formats
import torch
from comfy.ldm.wan.vae import WanVAE
from make_tiny_model import build_dit
from torch import Tensor, nn
from toy_clips import HELD_OUT, ROOM, SIZE, TRAINED, draw, random_clips
from toy_folder import DIT_CONFIG, SEED, TEXT_COLUMNS, VAE_WIDTH, load_prepared, save
from toy_latents import PATCH, LatentSpace
from toy_muon import Muon

from longcat_core.text import TEXT_TOKENS

LEARNING_RATES = {"encoder": (0.02, 2e-3), "decoder": (0.02, 2e-3), "dit": (0.014, 2e-3)}  # Muon's and AdamW's
MATRICES = {"encoder": "encoder.", "decoder": "decoder.", "dit": "blocks."}  # what Muon trains
WARM_UP = 60  # steps
CONSTANT = 0.4  # share of the first round before the learning rate falls along a cosine to 0; later rounds fall at once
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
LOG_EVERY = 50  # steps
CHECKPOINT_EVERY = 60.0  # seconds

CROP = 32  # pixels
CROPS = ((9, 3, 0.25), (17, 2, 0.4), (33, 1, 0.25), (93, 1, 0.1))  # frames, batch size, share of the steps
WHOLE_CLIPS = 0.15  # share of the first round, at its end, on whole clips of 17 frames instead of crops
LATER_CLIPS = (  # until step, the same for later rounds, whole
    (3800, ((1, 8, 0.6), (17, 1, 0.4))),
    (math.inf, ((1, 8, 0.2), (17, 1, 0.8))),
)
LATENT_NOISE = 0.15  # what the decoder learns to bear, since sampled latents are not perfect

SHIFT = 12.0
SHORT = ((17, 24, 0.7), (33, 12, 0.2), (93, 4, 0.1))  # frames, batch size, share of the steps
LONG = ((17, 24, 0.45), (33, 12, 0.45), (93, 4, 0.1))
TEXT_DROPOUT = 0.12  # share of the prompts


class Mix(NamedTuple):
    """What the transformer practices until some step."""

    until: float
    lengths: tuple[tuple, ...]
    conditions: tuple[tuple, ...]
    """Number of condition latents, share of the steps."""
    turns: float = 0.5
    """Share of the continuations with a prompt in which the given frames move in another direction than it says."""
    dropout: float = TEXT_DROPOUT
    """Share of the prompts that is dropped where frames are given."""


MIXES = (
    Mix(2700, SHORT, ((0, 0.5), (1, 0.25), (2, 0.15), (4, 0.1))),
    Mix(4800, SHORT, ((0, 0.8), (1, 0.1), (2, 0.06), (4, 0.04))),  # text to video takes longest to learn
    Mix(8400, LONG, ((0, 0.5), (1, 0.08), (2, 0.07), (4, 0.35))),  # far behind a seam comes next
    Mix(9400, LONG, ((0, 0.35), (1, 0.05), (2, 0.1), (4, 0.5))),
    Mix(10300, LONG, ((0, 0.3), (1, 0.03), (2, 0.07), (4, 0.6)), turns=0.2, dropout=0.4),  # and to need no prompt
    Mix(11500, LONG, ((0, 0.45), (1, 0.03), (2, 0.07), (4, 0.45)), turns=0.1, dropout=0.6),
    Mix(math.inf, LONG, ((0, 0.3), (1, 0.05), (2, 0.05), (4, 0.6)), turns=0.1),
)


class Round(NamedTuple):
    """A part of a training after which the learning rate is 0."""

    steps: int
    peak: float
    """Share of the full learning rate at which it starts."""


ROUNDS = {
    "encoder": (Round(1600, 1.0), Round(500, 0.4), Round(1200, 0.5)),
    "decoder": (Round(1800, 1.0), Round(400, 0.4), Round(1600, 0.6), Round(700, 0.4), Round(800, 0.4)),
    "dit": (Round(4800, 1.0), Round(3600, 0.6), Round(1000, 0.4), Round(900, 0.4), Round(1200, 0.4), Round(1200, 0.4)),
}


class Task(NamedTuple):
    """One training run."""

    module: nn.Module
    loss: Callable[[int, torch.Generator], dict[str, Tensor]]
    """Losses by name at a step; their sum is minimised. Negative steps are for data that is not trained on."""


# ---- tasks


def vae_task(part: str, work: Path, rounds: Sequence[Round]) -> Task:
    """Half of the VAE: `encoder` (pixels to latents) or `decoder` (noisy latents to pixels)."""
    space = LatentSpace.of(load_prepared(work)["space"])
    vae = build_vae()
    initialize(vae, torch.Generator().manual_seed(SEED))
    wan = comfy.latent_formats.Wan21()
    half = {"encoder": (vae.encoder, vae.conv1), "decoder": (vae.decoder, vae.conv2)}[part]
    module = torch.nn.ModuleDict({part: half[0], "conv": half[1]})

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pixels = clips_or_crops(step, rounds[0].steps, shortening(part, rounds), generator)
        latents = space.encode(pixels)
        if part == "encoder":
            return {"mse": (wan.process_in(vae.encode(pixels)) - latents).square().mean()}
        noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        error = vae.decode(wan.process_out(noisy)) - pixels
        return {"l1": error.abs().mean(), "mse": error.square().mean()}

    return Task(module, loss)


def clips_or_crops(step: int, first_round: int, shortened: float, generator: torch.Generator) -> Tensor:
    """Pixels for one step of the VAE: crops aligned to the latent grid, later whole clips."""
    subjects = HELD_OUT if step < 0 else TRAINED
    if step >= first_round:
        num_frames, batch, _ = pick(next(clips for until, clips in LATER_CLIPS if step * shortened < until), generator)
        return draw(random_clips(random_subjects(batch, generator, subjects), num_frames, generator, room=0))
    if step < 0 or step >= (1 - WHOLE_CLIPS) * first_round:
        return draw(random_clips(random_subjects(1, generator, subjects), 17, generator, room=0))
    num_frames, batch, _ = pick(CROPS, generator)
    pixels = draw(random_clips(random_subjects(batch, generator, subjects), num_frames, generator, room=0))
    y, x = (PATCH * torch.randint((SIZE - CROP) // PATCH + 1, (2,), generator=generator)).tolist()
    return pixels[..., y : y + CROP, x : x + CROP]


def dit_task(work: Path, rounds: Sequence[Round]) -> Task:
    """The transformer, by flow matching with the conditions that the real model knows."""
    shortened = shortening("dit", rounds)
    prepared = load_prepared(work)
    space, texts = LatentSpace.of(prepared["space"]), prepared["contexts"]
    columns = {text: index for index, text in enumerate(texts["texts"])}
    model = build_dit(DIT_CONFIG)
    initialize(model, torch.Generator().manual_seed(SEED))
    options = {"optimized_attention_override": attend_to_padding}

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        mix = next(mix for mix in MIXES if step * shortened < mix.until)
        num_frames, batch, _ = pick(mix.lengths, generator)
        num_cond, _ = pick(mix.conditions, generator)
        subjects = random_subjects(batch, generator, HELD_OUT if step < 0 else TRAINED)
        given, room = max(0, 4 * num_cond - 3), 0 if num_cond else ROOM
        dropped = torch.rand(batch, generator=generator) < (mix.dropout if num_cond else TEXT_DROPOUT)
        turns = ~dropped & (torch.rand(batch, generator=generator) < mix.turns)
        clean = space.encode(draw(random_clips(subjects, num_frames, generator, room, given, turns)))
        prompts = ["" if drop else subject.prompt for subject, drop in zip(subjects, dropped.tolist(), strict=True)]
        rows = [columns[prompt] for prompt in prompts]
        sigma = random_sigmas(batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1))
        noisy[:, :, :num_cond] = clean[:, :, :num_cond]
        timestep = (1000 * sigma)[:, None].repeat(1, clean.shape[2])
        timestep[:, :num_cond] = 0
        velocity = model(noisy, timestep, texts["context"][rows], texts["mask"][rows], num_cond, options)
        error = velocity - (noise - clean)
        return {f"{num_cond}": error[:, :, num_cond:].square().mean()}

    return Task(model, loss)


def attend_to_padding(attention: Callable, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention in which the last text column counts for the 502 columns of padding it stands for.

    They are all the same, so adding the logarithm of their number to the scores of one is exact, and the network need
    not compute the other 501. Self-attention has a multiple of 16 keys.
    """
    if k.shape[2] == TEXT_COLUMNS:
        bias = k.new_zeros(1, 1, TEXT_COLUMNS)
        bias[..., -1] = math.log(TEXT_TOKENS - TEXT_COLUMNS + 1)
        kwargs["mask"] = bias
    return attention(q, k, v, *args, **kwargs)


def random_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels `[count]`: half as the sampler visits them (shift 12), half uniform."""
    uniform = torch.rand(count, generator=generator)
    shifted = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    return torch.where(torch.rand(count, generator=generator) < 0.5, shifted, uniform)


def random_subjects(count: int, generator: torch.Generator, choices: tuple[Any, ...]) -> tuple[Any, ...]:
    """Subjects to draw."""
    return tuple(choices[i] for i in torch.randint(len(choices), (count,), generator=generator).tolist())


def pick(choices: tuple[tuple, ...], generator: torch.Generator) -> tuple:
    """One of `(..., share)` by its share."""
    return choices[int(torch.multinomial(torch.tensor([share for *_, share in choices]), 1, generator=generator))]


def build_vae() -> Any:
    """ComfyUI's Wan VAE at the toy's width."""
    return WanVAE(VAE_WIDTH, z_dim=16, attn_scales=[], temperal_downsample=[False, True, True])


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Unit-gain matrices and kernels, gains of 1, biases of 0; modulations and the final layer start at 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or "adaLN" in name or name == "final_layer.linear.weight":
                parameter.zero_()
            elif name.endswith("gamma") or parameter.ndim == 1:
                parameter.fill_(1)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)


# ---- training


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


def shortening(part: str, rounds: Sequence[Round]) -> float:
    """How many steps of the whole recipe one step stands for."""
    return num_steps(ROUNDS[part]) / num_steps(rounds)


def num_steps(rounds: Sequence[Round]) -> int:
    """Of all rounds."""
    return sum(length for length, _ in rounds)


def step_generator(step: int) -> torch.Generator:
    """Randomness of one step, so that a resumed run sees what an uninterrupted one does; negative for held-out data."""
    return torch.Generator().manual_seed(SEED + 1_000_003 * (step + 1_000_000))


def learning_rate(step: int, rounds: Sequence[Round]) -> float:
    """Share of the full learning rate: a short rise, constant in the first round only, then a cosine to 0."""
    starts = itertools.accumulate((length for length, _ in rounds[:-1]), initial=0)
    start, (length, peak) = max((start, found) for start, found in zip(starts, rounds, strict=True) if start <= step)
    constant = 0.0 if start else CONSTANT
    falling = max(0.0, ((step - start) / length - constant) / (1 - constant))
    return peak * min(1.0, (step - start + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * falling))


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
