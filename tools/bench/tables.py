"""The tables of the network and of its cache, and what in them is too little."""

import platform
from collections.abc import Mapping, Sequence

import comfyui_version
import torch

from bench.kv_cache import CacheResult
from bench.network import MAX_DEVIATION, ORIGINAL, Result, Workload
from bench.report import aligned, estimate, estimate_text, memory_text

MAX_TIME_RATIO = 1.0
MAX_MEMORY_RATIO = 1.02
MIN_CACHE_GAIN = 0.9  # of the predicted one
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


def conditions(workload: Workload) -> str:
    """What was measured, and on what."""
    size = "x".join(map(str, workload.latent))
    return (
        f"hidden {workload.hidden}, {workload.heads} heads, depth {workload.depth}, latent {size}, "
        f"text {workload.text}, fp32, scaled dot-product attention\n"
        f"ComfyUI {comfyui_version.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{platform.system()} {platform.machine()}"
    )


def network_table(results: Mapping[str, Result], names: Sequence[str]) -> str:
    """Times and memory of the named networks, with ratios where there are two."""
    compared = ORIGINAL in names
    header = ["", *names, *(["ratio"] if compared else [])]
    rows = [header, ["---"] * len(header)]
    for title, result in results.items():
        times = [estimate_text(estimate(result.seconds[name]), " s") for name in names]
        rows.append([f"{title}: time", *times, *([estimate_text(result.time_ratio)] if compared else [])])
        rows.append([f"{title}: peak memory over idle", *_memory_cells(result, names)])
    return aligned(rows)


def cache_table(results: Sequence[CacheResult]) -> str:
    """What the cache gains, one column per number of condition latents."""
    if not results:
        return "KV cache: a video of one latent frame has no condition frames."
    columns = [["KV cache, one thread: condition latents", "---", *CACHE_ROWS]]
    for result in results:
        per_second = [[1 / seconds for seconds in times] for times in (result.without, result.cached)]
        cells = [*map(estimate, per_second), estimate(result.speed_ups), estimate(result.gain_shares)]
        without, cached, speed_up, gain = map(estimate_text, cells)
        columns.append(
            [
                f"{result.num_cond_latents} of {result.num_latents}",
                *("---", without, cached, speed_up, f"{result.predicted:.3f}"),
                f"{estimate(result.speed_ups).median / result.predicted:.3f}",
                *(gain, estimate_text(estimate(result.building_shares)), f"{result.deviation:.1e}"),
            ]
        )
    return aligned(list(zip(*columns, strict=True)))


def _memory_cells(result: Result, names: Sequence[str]) -> list[str]:
    memory = result.memory
    sizes = [memory_text(memory[name] if memory else None) for name in names]
    if ORIGINAL not in names:
        return sizes
    ratio = result.memory_ratio
    return [*sizes, "-" if ratio is None else f"{ratio:.3f}"]


def network_failures(results: Mapping[str, Result]) -> list[str]:
    """Where ours takes more than the original, beyond doubt."""
    failures = []
    for title, result in results.items():
        low, memory = result.time_ratio.low, result.memory_ratio
        if low > MAX_TIME_RATIO:
            failures.append(f"{title} takes at least {low:.3f} of the original's time; {MAX_TIME_RATIO} is allowed")
        if memory is not None and memory > MAX_MEMORY_RATIO:
            failures.append(f"{title} needs {memory:.3f} of the original's memory; {MAX_MEMORY_RATIO} is allowed")
    return failures


def cache_failures(results: Sequence[CacheResult]) -> list[str]:
    """Where the whole range of the gain is too low; the deviation, which no machine blurs, must be in bounds itself."""
    failures = []
    for result in results:
        high, case = estimate(result.gain_shares).high, f"KV cache of {result.num_cond_latents} latents"
        if high < MIN_CACHE_GAIN:
            failures.append(f"{case} gains at most {high:.3f} of what is predicted; {MIN_CACHE_GAIN} is required")
        if not result.deviation <= MAX_DEVIATION:
            failures.append(f"{case} deviates by {result.deviation:.1e}; {MAX_DEVIATION:.0e} is allowed")
    return failures
