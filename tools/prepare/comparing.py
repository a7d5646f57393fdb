"""A written file compared with what its source gives, number by number."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from longcat_core.conversion.values import HALF_STEP, Plain, Quantised, has_same_bytes
from longcat_core.weights.safetensors_file import NAMES
from longcat_core.weights.vae_umt5 import wrong_names
from prepare.plan import Output
from prepare.report import peak_memory, progress_bar

NUM_EXAMPLES = 5


@dataclass
class Tally:
    """What was found in the tensors of one format."""

    num_tensors: int = 0
    num_equal: int = 0
    largest_error: float = 0.0
    relative_error: float = 0.0


def compare(output: Output) -> int:
    """Compare a file, as the `safetensors` library reads it, with the source; print a table; return 1 if not equal."""
    try:
        problems = _wrong_tensors(output)
        tallies = {} if problems else _compare_numbers(output, problems)
    except SafetensorError as error:
        problems, tallies = [f"it cannot be read ({error})"], {}
    print(f"\n{output.path}: {output.kind}, {len(output.plan.tensors)} tensors")
    print(f"{'stored as':<18}{'tensors':>9}{'equal':>9}{'largest error':>15}{'relative error':>16}")
    for stored_as, tally in sorted(tallies.items()):
        errors = (f"{tally.largest_error:.2e}", f"{tally.relative_error:.2e}") if tally.largest_error else ("-", "-")
        print(f"{stored_as:<18}{tally.num_tensors:>9}{tally.num_equal:>9}{errors[0]:>15}{errors[1]:>16}")
    for problem in problems[:NUM_EXAMPLES]:
        print(f"different: {problem}")
    if len(problems) > NUM_EXAMPLES:
        print(f"different: {len(problems) - NUM_EXAMPLES} more")
    print(f"{'differs from' if problems else 'agrees with'} the source{peak_memory()}")
    return 1 if problems else 0


def _wrong_tensors(output: Output) -> list[str]:
    """Names, shapes and dtypes that are not as planned."""
    planned = output.plan.tensors
    with safe_open(output.path, "pt") as file:
        names = set(file.keys())
        wrong = wrong_names(planned.keys() - names, names - planned.keys())
        if wrong:
            return [wrong]
        slices = {name: file.get_slice(name) for name in planned}
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    return [
        f"{name} is {found[name]}, not {(NAMES[kind.dtype], kind.shape)}"
        for name, kind in planned.items()
        if found[name] != (NAMES[kind.dtype], kind.shape)
    ]


def _compare_numbers(output: Output, problems: list[str]) -> dict[str, Tally]:
    """What was found by format; problems are added to those there are."""
    tallies: dict[str, Tally] = {}
    with progress_bar(f"comparing {output.path.name}", [output]) as bar:
        for target in output.plan.targets:
            stored = functools.partial(_stored, output.path)
            different = _different(stored, target, bar)
            if isinstance(target, Quantised):
                tally = tallies.setdefault(target.quant_format, Tally())
                largest, error, relative = target.errors(stored)
                tally.largest_error = max(tally.largest_error, error)
                tally.relative_error = max(tally.relative_error, relative)
                if not error <= largest * HALF_STEP[target.quant_format]:
                    problems.append(f"{target.layer} is off by {error:.2e}; its largest number is {largest:.2e}")
            else:
                tally = tallies.setdefault(NAMES[target.dtype], Tally())
            tally.num_tensors += len(target.tensors)
            tally.num_equal += len(target.tensors) - len(different)
            problems.extend(f"{name} has other numbers" for name in different)
    return tallies


def _different(stored: Callable[[str, int, int], Any], target: Plain | Quantised, bar: Any) -> list[str]:
    """The tensors whose bytes are not those that the source gives."""
    position = dict.fromkeys(target.tensors, 0)
    different: set[str] = set()
    for name, rows in target.chunks():
        start, position[name] = position[name], position[name] + (len(rows) if rows.ndim else 1)
        if not has_same_bytes(stored(name, start, position[name]), rows):
            different.add(name)
        bar.update(rows.nbytes)
    return sorted(different)


def _stored(path: Path, name: str, start: int, stop: int) -> Any:
    """Rows of a tensor. The library maps the whole file into memory and gives nothing back before it is closed."""
    with safe_open(path, "pt") as file:
        part = file.get_slice(name)
        return part[start:stop] if part.get_shape() else file.get_tensor(name)
