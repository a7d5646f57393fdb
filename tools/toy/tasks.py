"""What each part of the toy model learns from.

    encoder, decoder   ComfyUI's own Wan VAE, taught to compute the latents of latents.py and to undo them
    dit                this pack's network by flow matching on those latents, for the tasks of the real model (text to
                       video, image to video, continuation), with text dropout for guidance

ComfyUI and the pack must be importable, and `comfy.model_management.in_training` set.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comfy.latent_formats
import torch
from comfy.ldm.wan.vae import WanVAE
from tiny.network import build_dit
from torch import Tensor, nn

from longcat_core.text import TEXT_TOKENS
from toy.clips import HELD_OUT, ROOM, SIZE, TRAINED, draw, random_clips
from toy.folder import DIT_CONFIG, SEED, TEXT_COLUMNS, VAE_WIDTH, load_prepared
from toy.latents import PATCH, LatentSpace
from toy.rounds import Round, shortening

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


class Task(NamedTuple):
    """One training run."""

    module: nn.Module
    loss: Callable[[int, torch.Generator], dict[str, Tensor]]
    """Losses by name at a step; their sum is minimised. Negative steps are for data that is not trained on."""


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
