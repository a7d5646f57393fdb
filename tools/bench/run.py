"""The two benchmarks: what they measure, print, and find wanting.

`host.imports.use_comfyui` comes before this is imported.
"""

import argparse
from collections.abc import Sequence

import torch
from host.process import say

from bench import kv_cache
from bench.memory import growth, in_fresh_process, is_measurable
from bench.network import ORIGINAL, OURS, PASSES, DisagreementError, Workload, build, measure, random_inputs
from bench.refinement import MIN_EFFICIENCY, UNLIMITED, CudaRow, forward_in_spans, measure_cuda, measure_work
from bench.report import aligned, estimate, estimate_text, memory_text
from bench.tables import cache_failures, cache_table, conditions, network_failures, network_table
from longcat_core.network.spans import MAX_SPAN_TOKENS


def benchmark(options: argparse.Namespace) -> int:
    """Do what the options of scripts/bench.py ask for, and return the exit status."""
    if options.refinement:
        return benchmark_refinement(options.repeats, options.check)
    names = ("hidden", "heads", "depth", "latent", "text", "threads", "reference")
    workload = Workload(**{name: getattr(options, name) for name in names})
    return benchmark_network(workload, options.repeats, options.check)


def benchmark_network(workload: Workload, repeats: int, check: bool) -> int:
    """Measure the network, beside the original where there is one, and its cache; return the exit status.

    Args:
        workload: sizes.
        repeats: of every measured time.
        check: fail if the original is faster or smaller, or if the cache gains too little.
    """
    networks = build(workload, [OURS, ORIGINAL] if workload.reference else [OURS])
    print(conditions(workload), flush=True)
    results = {}
    try:
        for title, batch in PASSES.items():
            results[title] = measure(workload, networks, title, batch, repeats)
    except DisagreementError as error:
        say(str(error))
        return 1
    print(network_table(results, list(networks)))
    frames, inputs = workload.latent[0], random_inputs(workload, 1)
    counts = sorted({1, frames // 2} - {0, frames})
    caches = [kv_cache.measure(networks[OURS], inputs, num_cond_latents, repeats) for num_cond_latents in counts]
    print(f"\n{cache_table(caches)}")
    failures = []
    if check:
        failures = [*(network_failures(results) if workload.reference else []), *cache_failures(caches)]
    return _status(failures)


def benchmark_refinement(repeats: int, check: bool) -> int:
    """Measure block-sparse attention and spans of frames; return the exit status.

    Args:
        repeats: of every measured time.
        check: fail if block-sparse attention gains too little.
    """
    with torch.inference_mode():
        work = measure_work(repeats)
        speed_up, efficiency = estimate(work.speed_ups), estimate(work.efficiencies)
        rows = [
            ["attention on a CPU, one thread", "operations saved", "speed-up", "speed-up over operations"],
            ["---"] * 4,
            [f"{work.num_tokens} tokens", f"{work.flops_saved:.2f}", *map(estimate_text, (speed_up, efficiency))],
        ]
        print(aligned(rows), flush=True)
        if torch.cuda.is_available():
            print(f"\n{torch.cuda.get_device_name()}\n{_cuda_table(measure_cuda(repeats))}", flush=True)
    limits = {"whole": UNLIMITED, f"spans of {MAX_SPAN_TOKENS}": MAX_SPAN_TOKENS}
    found = {name: in_fresh_process(measure_forward, limit) for name, limit in limits.items()}
    rows = [["one forward of 65536 tokens, hidden 512, 2 blocks, fp32", "peak memory over idle"], ["---"] * 2]
    rows += [[name, memory_text(peak)] for name, (peak, _) in found.items()]
    print(f"\n{aligned(rows)}")
    failures = []
    if len({digest for _, digest in found.values()}) > 1:
        failures.append("the outputs with and without spans differ")
    if check and efficiency.median < MIN_EFFICIENCY:
        failures.append(
            f"the speed-up is {efficiency.median:.2f} of the operations saved; {MIN_EFFICIENCY} is required"
        )
    return _status(failures)


def _cuda_table(measured: Sequence[CudaRow]) -> str:
    rows = [["tokens", "attention", "milliseconds", "TFLOP/s on kept chunks", "error"], ["---"] * 5]
    rows += [
        [f"{r.num_tokens}", r.name, f"{r.milliseconds:.1f}", f"{r.tflops:.0f}", f"{r.error:.1e}"] for r in measured
    ]
    return aligned(rows)


def measure_forward(limit: int) -> tuple[int | None, str]:
    """Bytes by which one forward makes this process larger (None where the system does not tell), and its output."""
    with torch.inference_mode():
        forward = forward_in_spans(limit)
        if not is_measurable():
            return None, forward()
        digests: list[str] = []
        return growth(lambda: digests.append(forward())), digests[0]


def _status(failures: Sequence[str]) -> int:
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0
