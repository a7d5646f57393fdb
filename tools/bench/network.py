"""Time and peak memory of forward passes of the network, ours and the original, in fp32 on the CPU.

`host.imports.use_comfyui` comes before this is imported.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from host.process import say
from torch import Tensor, nn

from bench.memory import growth, in_fresh_process, is_measurable
from bench.reference import Original
from bench.report import Estimate, estimate
from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size

PASSES = {"one forward": 1, "CFG pair": 2}
"""What is measured, and its batch size."""
CHANNELS = 16
CAPTION_CHANNELS = 4096
OURS, ORIGINAL = "this pack", "original"
MAX_DEVIATION = 1e-4  # of the outputs, relative to the largest value
MEMORY_RESOLUTION = 2**20  # bytes


class DisagreementError(Exception):
    """The two implementations do not compute the same; the message gives the numbers."""


@dataclass(frozen=True)
class Workload:
    """Sizes of the network and of its inputs."""

    hidden: int
    heads: int
    depth: int
    latent: tuple[int, int, int]
    text: int
    threads: int | None
    reference: Path | None


@dataclass(frozen=True)
class Result:
    """What was measured of one kind of pass: seconds of every repeat, and bytes where the system tells them."""

    seconds: Mapping[str, Sequence[float]]
    memory: Mapping[str, int] | None

    @property
    def time_ratio(self) -> Estimate:
        """Our time over the original's."""
        return estimate([a / b for a, b in zip(self.seconds[OURS], self.seconds[ORIGINAL], strict=True)])

    @property
    def memory_ratio(self) -> float | None:
        """Our peak over the original's, where they are large enough to compare."""
        if self.memory is None or min(self.memory.values()) < MEMORY_RESOLUTION:
            return None
        return self.memory[OURS] / self.memory[ORIGINAL]


def build(workload: Workload, names: Sequence[str]) -> dict[str, nn.Module]:
    """The named networks, with the same random weights."""
    if workload.threads:
        torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    builders = {OURS: _build_ours, ORIGINAL: _build_original}
    networks = {name: builders[name](workload) for name in names}
    if len(networks) > 1:
        networks[OURS].load_state_dict(networks[ORIGINAL].network.state_dict(), strict=True)
    return networks


def _build_ours(workload: Workload) -> nn.Module:
    network = LongCatVideoTransformer(
        hidden_size=workload.hidden,
        num_heads=workload.heads,
        depth=workload.depth,
        ffn_hidden_size=ffn_hidden_size(workload.hidden),
        dtype=torch.float32,
    )
    for parameter in network.parameters():  # ComfyUI's layers leave them as the memory was
        torch.nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False)


def _build_original(workload: Workload) -> nn.Module:
    assert workload.reference is not None  # nobody asks for the original without it
    return Original(workload.reference, workload.hidden, workload.heads, workload.depth)


def random_inputs(workload: Workload, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latent, timestep, text and text mask, as both networks take them."""
    latent = torch.randn(batch, CHANNELS, *workload.latent)
    text = torch.randn(batch, workload.text, CAPTION_CHANNELS)
    mask = (torch.arange(workload.text) < workload.text / 2).long().expand(batch, -1)
    return latent, torch.full((batch,), 500.0), text, mask


def measure(workload: Workload, networks: Mapping[str, nn.Module], title: str, batch: int, repeats: int) -> Result:
    """Time forward passes of the networks in turn, and measure their memory.

    Raises:
        DisagreementError: they do not compute the same.
    """
    inputs = random_inputs(workload, batch)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        outputs = {name: network(*inputs) for name, network in networks.items()}
        if ORIGINAL in outputs:
            print(f"{title}: the outputs deviate by {_deviation(outputs):.1e} ({MAX_DEVIATION:.0e} is allowed)")
        for repeat in range(repeats):
            say(f"{title}: time {repeat + 1}/{repeats}")
            for name, network in networks.items():
                started = time.perf_counter()
                network(*inputs)
                seconds[name].append(time.perf_counter() - started)
    say(f"{title}: memory")
    return Result(seconds, _peak_memories(workload, list(networks), batch))


def _deviation(outputs: Mapping[str, Tensor]) -> float:
    """Largest difference of the outputs over the original's largest value; raises DisagreementError."""
    expected = -outputs[ORIGINAL]  # clean - noise there, noise - clean here
    deviation = ((outputs[OURS] - expected).abs().max() / expected.abs().max()).item()
    if not deviation <= MAX_DEVIATION:  # also when it is NaN
        raise DisagreementError(
            f"The outputs deviate by {deviation:.1e} of the largest value, above {MAX_DEVIATION:.0e}. Comparing the "
            "speed of different computations means nothing: find the place with the parity tests first."
        )
    return deviation


def _peak_memories(workload: Workload, names: Sequence[str], batch: int) -> dict[str, int] | None:
    if not is_measurable():
        return None
    return {name: in_fresh_process(peak_memory, workload, name, batch) for name in names}


def peak_memory(workload: Workload, name: str, batch: int) -> int:
    """Bytes by which one pass of the named network makes this process larger, at the most.

    The first pass does not count: it also loads code and makes buffers that stay.
    """
    network = build(workload, [name])[name]
    inputs = random_inputs(workload, batch)
    with torch.inference_mode():
        network(*inputs)
        return growth(lambda: network(*inputs))
