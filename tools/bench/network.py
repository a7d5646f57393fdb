"""Benchmark the network: time and peak memory of one forward pass and of a CFG pair, in fp32 on the CPU.

A second table shows what the cache of condition frames gains, against what the count of operations predicts.
``--refinement`` prints other tables instead: block-sparse against dense attention, on a graphics card if there is one,
and the memory of a call with and without spans of frames.

``--reference DIR`` adds the original implementation, taken from a checkout of its repository, to the same run: on the
same weights and inputs, both with torch's scaled dot-product attention, taking turns. Their outputs must agree.

Times are medians, each with a range that holds the true median with a probability of 90 % or more: from the smallest
to the largest of 5 repeats, without the outliers of more. Time ratios are taken between neighbouring repeats.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import comb
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # an embedded Python does not do it
from host import PACK, ensure_host, run_command, run_in_host

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench_kv_cache import CacheResult
    from bench_refinement import CudaRow
    from torch import Tensor, nn

PASSES = {"one forward": 1, "CFG pair": 2}
"""What is measured, and its batch size."""
CHANNELS = 16
CAPTION_CHANNELS = 4096
OURS, ORIGINAL = "this pack", "original"

MAX_DEVIATION = 1e-4  # of the outputs, relative to the largest value
MAX_TIME_RATIO = 1.0
MAX_MEMORY_RATIO = 1.02
MIN_CACHE_GAIN = 0.9  # of the predicted one
MISS_PROBABILITY = 0.1
MEMORY_RESOLUTION = 2**20  # bytes

CACHE_ROWS = (
    "forwards per second without",
    "forwards per second with the built cache",
    "speed-up",
    "speed-up predicted by operations",
    "speed-up over predicted",
    "gain (speed-up - 1) over predicted",
    "building it, in forwards without",
    "deviation of the generated frames",
)

PEAK_RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
# glibc keeps freed tensors for later ones, by rules that make its size a matter of chance. Returning what is 64 KB or
# larger at once makes the size of the process that of its living tensors.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


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


class Estimate(NamedTuple):
    """A median and the range of its uncertainty."""

    median: float
    low: float
    high: float


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


def main() -> int:
    """Set up, and run this file again under the host's Python, which has torch and ComfyUI."""
    options = _options()
    if options.hosted:
        return _benchmark(options)
    host = ensure_host(packages=["diffusers"] if options.reference else [])  # the original is built on it
    return run_in_host(host, [__file__, "--hosted", *sys.argv[1:]])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=_checkout, metavar="DIR", help="checkout of meituan-longcat/LongCat-Video")
    parser.add_argument("--repeats", type=_positive, default=5, help="of every measured time (default: %(default)s)")
    parser.add_argument("--hidden", type=_positive, default=1024, help="width of the network (default: %(default)s)")
    parser.add_argument("--heads", type=_positive, default=8, help="attention heads (default: %(default)s)")
    parser.add_argument("--depth", type=_positive, default=4, help="blocks (default: %(default)s)")
    parser.add_argument("--latent", type=_latent, default="8x24x40", metavar="TxHxW", help="default: %(default)s")
    parser.add_argument("--text", type=_positive, default=256, help="tokens, half are padding (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, help="of torch (default: its own choice)")
    parser.add_argument("--refinement", action="store_true", help="only the tables of refinement")
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail if the original is faster or smaller, or if the cache gains too little",
    )
    parser.add_argument("--hosted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hidden % (8 * options.heads):
        parser.error(f"--hidden {options.hidden} must be a multiple of 8 * --heads ({8 * options.heads})")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _latent(text: str) -> tuple[int, int, int]:
    sizes = tuple(map(_positive, text.split("x")))
    if len(sizes) != 3 or sizes[1] % 2 or sizes[2] % 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not frames x height x width with even height and width")
    return sizes


def _checkout(text: str) -> Path:
    folder = Path(text).absolute()
    network = Path("longcat_video", "modules", "longcat_video_dit.py")
    if not (folder / network).is_file():
        raise argparse.ArgumentTypeError(f"{folder} is no checkout of the original: it has no {network}")
    return folder


# --- everything below runs in the host's Python -----------------------------------------------------------------------


def _benchmark(options: argparse.Namespace) -> int:
    # ComfyUI's root first: the pack and its scripts have modules of the same names.
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    sys.path.append(str(PACK))
    if options.refinement:
        return _benchmark_refinement(options.repeats, options.check)
    names = ("hidden", "heads", "depth", "latent", "text", "threads", "reference")
    workload = Workload(**{name: getattr(options, name) for name in names})
    networks = build(workload, [OURS, ORIGINAL] if workload.reference else [OURS])
    print(_conditions(workload), flush=True)
    results = {}
    try:
        for title, batch in PASSES.items():
            results[title] = _measure(workload, networks, title, batch, options.repeats)
    except DisagreementError as error:
        _say(str(error))
        return 1
    print(_table(results, list(networks)))
    caches = _measure_cache(workload, networks[OURS], options.repeats)
    print(f"\n{_cache_table(caches)}")
    failures = []
    if options.check:
        failures = [*(_failures(results) if workload.reference else []), *_cache_failures(caches)]
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


def _benchmark_refinement(repeats: int, check: bool) -> int:
    import comfy.cli_args
    import torch

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
    from bench_refinement import MIN_EFFICIENCY, UNLIMITED, measure_cuda, measure_work

    from longcat_core.network.spans import MAX_SPAN_TOKENS

    with torch.inference_mode():
        work = measure_work(repeats)
        speed_up, efficiency = estimate(work.speed_ups), estimate(work.efficiencies)
        rows = [
            ["attention on a CPU, one thread", "operations saved", "speed-up", "speed-up over operations"],
            ["---"] * 4,
            [f"{work.num_tokens} tokens", f"{work.flops_saved:.2f}", *map(_estimate_text, (speed_up, efficiency))],
        ]
        print(_aligned(rows), flush=True)
        if torch.cuda.is_available():
            print(f"\n{torch.cuda.get_device_name()}\n{_cuda_table(measure_cuda(repeats))}", flush=True)
    limits = {"whole": UNLIMITED, f"spans of {MAX_SPAN_TOKENS}": MAX_SPAN_TOKENS}
    found = {name: _forward_in_fresh_process(limit) for name, limit in limits.items()}
    rows = [["one forward of 65536 tokens, hidden 512, 2 blocks, fp32", "peak memory over idle"], ["---"] * 2]
    rows += [[name, _bytes_text(peak)] for name, (peak, _) in found.items()]
    print(f"\n{_aligned(rows)}")
    failures = []
    if len({digest for _, digest in found.values()}) > 1:
        failures.append("the outputs with and without spans differ")
    if check and efficiency.median < MIN_EFFICIENCY:
        failures.append(
            f"the speed-up is {efficiency.median:.2f} of the operations saved; {MIN_EFFICIENCY} is required"
        )
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


def _cuda_table(measured: Sequence[CudaRow]) -> str:
    rows = [["tokens", "attention", "milliseconds", "TFLOP/s on kept chunks", "error"], ["---"] * 5]
    rows += [
        [f"{r.num_tokens}", r.name, f"{r.milliseconds:.1f}", f"{r.tflops:.0f}", f"{r.error:.1e}"] for r in measured
    ]
    return _aligned(rows)


def _bytes_text(size: int | None) -> str:
    return "not measured on this system" if size is None else f"{size / 1e6:.1f} MB"


def _forward_in_fresh_process(limit: int) -> tuple[int | None, str]:
    os.environ.update(ALLOCATOR)  # of the processes to come: this one has read it already
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_forward, limit).result()


def measure_forward(limit: int) -> tuple[int | None, str]:
    """Bytes by which one forward makes this process larger (None where the system does not tell), and its output."""
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
    import torch
    from bench_refinement import forward_in_spans

    with torch.inference_mode():
        forward = forward_in_spans(limit)
        if not os.access(PEAK_RESET, os.W_OK):
            return None, forward()
        PEAK_RESET.write_text("5", encoding="ascii")
        idle = _status("VmRSS")
        digest = forward()
    return _status("VmHWM") - idle, digest


def build(workload: Workload, names: Sequence[str]) -> dict[str, nn.Module]:
    """The named networks, with the same random weights."""
    import torch

    if workload.threads:
        torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    builders = {OURS: _build_ours, ORIGINAL: _build_original}
    networks = {name: builders[name](workload) for name in names}
    if len(networks) > 1:
        networks[OURS].load_state_dict(networks[ORIGINAL].network.state_dict(), strict=True)
    return networks


def _build_ours(workload: Workload) -> nn.Module:
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True  # on a CPU the default is sub-quadratic attention

    import torch

    from longcat_core.network.dit import LongCatVideoTransformer, ffn_hidden_size

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
    from bench_reference import Original

    assert workload.reference is not None  # nobody asks for the original without it
    return Original(workload.reference, workload.hidden, workload.heads, workload.depth)


def random_inputs(workload: Workload, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latent, timestep, text and text mask, as both networks take them."""
    import torch

    latent = torch.randn(batch, CHANNELS, *workload.latent)
    text = torch.randn(batch, workload.text, CAPTION_CHANNELS)
    mask = (torch.arange(workload.text) < workload.text / 2).long().expand(batch, -1)
    return latent, torch.full((batch,), 500.0), text, mask


def _measure(workload: Workload, networks: Mapping[str, nn.Module], title: str, batch: int, repeats: int) -> Result:
    import torch

    inputs = random_inputs(workload, batch)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        outputs = {name: network(*inputs) for name, network in networks.items()}
        if ORIGINAL in outputs:
            print(f"{title}: the outputs deviate by {_deviation(outputs):.1e} ({MAX_DEVIATION:.0e} is allowed)")
        for repeat in range(repeats):
            _say(f"{title}: time {repeat + 1}/{repeats}")
            for name, network in networks.items():
                started = time.perf_counter()
                network(*inputs)
                seconds[name].append(time.perf_counter() - started)
    _say(f"{title}: memory")
    return Result(seconds, _peak_memories(workload, list(networks), batch))


def _measure_cache(workload: Workload, network: nn.Module, repeats: int) -> list[CacheResult]:
    from bench_kv_cache import measure

    frames, inputs = workload.latent[0], random_inputs(workload, 1)
    counts = sorted({1, frames // 2} - {0, frames})
    return [measure(network, inputs, num_cond_latents, repeats) for num_cond_latents in counts]


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
    if not os.access(PEAK_RESET, os.W_OK):
        return None
    os.environ.update(ALLOCATOR)  # of the processes to come: this one has read it already
    return {name: _in_fresh_process(workload, name, batch) for name in names}


def _in_fresh_process(workload: Workload, name: str, batch: int) -> int:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_memory, workload, name, batch).result()


def peak_memory(workload: Workload, name: str, batch: int) -> int:
    """Bytes by which one pass of the named network makes this process larger, at the most. Linux only.

    The first pass does not count: it also loads code and makes buffers that stay.
    """
    import torch

    network = build(workload, [name])[name]
    inputs = random_inputs(workload, batch)
    with torch.inference_mode():
        network(*inputs)
        PEAK_RESET.write_text("5", encoding="ascii")
        idle = _status("VmRSS")
        network(*inputs)
        return _status("VmHWM") - idle


def _status(name: str) -> int:
    """A size in bytes out of this process's status."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
    return int(fields[name].split()[0]) * 1024


def estimate(values: Sequence[float]) -> Estimate:
    """The median and the narrowest range between two values that misses the true one with MISS_PROBABILITY or less."""
    ordered = sorted(values)
    count = len(ordered)
    outside = 0
    # How many values are below the true median is distributed as the heads of that many coins are.
    while 2 * sum(comb(count, heads) for heads in range(outside + 2)) <= MISS_PROBABILITY * 2**count:
        outside += 1
    return Estimate(statistics.median(ordered), ordered[outside], ordered[-1 - outside])


def _conditions(workload: Workload) -> str:
    import torch
    from comfyui_version import __version__ as comfyui

    size = "x".join(map(str, workload.latent))
    return (
        f"hidden {workload.hidden}, {workload.heads} heads, depth {workload.depth}, latent {size}, "
        f"text {workload.text}, fp32, scaled dot-product attention\n"
        f"ComfyUI {comfyui}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.system()} {platform.machine()}"
    )


def _table(results: Mapping[str, Result], names: Sequence[str]) -> str:
    compared = ORIGINAL in names
    header = ["", *names, *(["ratio"] if compared else [])]
    rows = [header, ["---"] * len(header)]
    for title, result in results.items():
        times = [_estimate_text(estimate(result.seconds[name]), " s") for name in names]
        rows.append([f"{title}: time", *times, *([_estimate_text(result.time_ratio)] if compared else [])])
        rows.append([f"{title}: peak memory over idle", *_memory_cells(result, names)])
    return _aligned(rows)


def _cache_table(results: Sequence[CacheResult]) -> str:
    if not results:
        return "KV cache: a video of one latent frame has no condition frames."
    columns = [["KV cache, one thread: condition latents", "---", *CACHE_ROWS]]
    for result in results:
        per_second = [[1 / seconds for seconds in times] for times in (result.without, result.cached)]
        cells = [*map(estimate, per_second), estimate(result.speed_ups), estimate(result.gain_shares)]
        without, cached, speed_up, gain = map(_estimate_text, cells)
        columns.append(
            [
                f"{result.num_cond_latents} of {result.num_latents}",
                *("---", without, cached, speed_up, f"{result.predicted:.3f}"),
                f"{estimate(result.speed_ups).median / result.predicted:.3f}",
                *(gain, _estimate_text(estimate(result.building_shares)), f"{result.deviation:.1e}"),
            ]
        )
    return _aligned(list(zip(*columns, strict=True)))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def _memory_cells(result: Result, names: Sequence[str]) -> list[str]:
    memory = result.memory
    sizes = [f"{memory[name] / 1e6:.1f} MB" if memory else "not measured on this system" for name in names]
    if ORIGINAL not in names:
        return sizes
    ratio = result.memory_ratio
    return [*sizes, "-" if ratio is None else f"{ratio:.3f}"]


def _estimate_text(value: Estimate, unit: str = "") -> str:
    return f"{value.median:.3f}{unit} ({value.low:.3f} .. {value.high:.3f})"


def _failures(results: Mapping[str, Result]) -> list[str]:
    failures = []
    for title, result in results.items():
        low, memory = result.time_ratio.low, result.memory_ratio
        if low > MAX_TIME_RATIO:
            failures.append(f"{title} takes at least {low:.3f} of the original's time; {MAX_TIME_RATIO} is allowed")
        if memory is not None and memory > MAX_MEMORY_RATIO:
            failures.append(f"{title} needs {memory:.3f} of the original's memory; {MAX_MEMORY_RATIO} is allowed")
    return failures


def _cache_failures(results: Sequence[CacheResult]) -> list[str]:
    """Where the whole range of the gain is too low; the deviation, which no machine blurs, must be in bounds itself."""
    failures = []
    for result in results:
        high, case = estimate(result.gain_shares).high, f"KV cache of {result.num_cond_latents} latents"
        if high < MIN_CACHE_GAIN:
            failures.append(f"{case} gains at most {high:.3f} of what is predicted; {MIN_CACHE_GAIN} is required")
        if not result.deviation <= MAX_DEVIATION:
            failures.append(f"{case} deviates by {result.deviation:.1e}; {MAX_DEVIATION:.0e} is allowed")
    return failures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
