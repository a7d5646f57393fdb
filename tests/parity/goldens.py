"""Read golden cases and compare tensors with them; see goldens/README.md."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parent / "goldens"
# A faithful implementation is within 0.97 to 1.05 of the original's own bf16 error; modulation in bf16 gives 1.12.
BF16_FACTOR = 1.05
BF16_SAMPLER_TOLERANCE = 1e-3
EXACT = {"max_abs": 0.0, "rel_l2": 0.0}


@dataclass(frozen=True)
class Case:
    """One golden case."""

    set_name: str
    spec: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.set_name}/{self.spec['id']}"

    @property
    def args(self) -> dict[str, Any]:
        return self.spec["args"]

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.spec["dtype"] == "bf16" else torch.float32

    @property
    def config(self) -> dict[str, Any]:
        """Model config with the case's overrides."""
        overrides = {k.partition(".")[2]: v for k, v in self.args.items() if k.startswith("config_override.")}
        return {**manifest()["models"][self.spec["model"]]["config"], **overrides}

    @property
    def state(self) -> dict[str, Tensor]:
        """Model weights in fp32."""
        return {name: t.float() for name, t in load(f"models/{self.spec['model']}.safetensors").items()}

    def sibling(self, case_id: str) -> "Case":
        """Another case of the same set."""
        (found,) = (case for case in cases(self.set_name) if case.spec["id"] == case_id)
        return found

    def inputs(self) -> dict[str, Tensor | None]:
        """Input tensors; those stored in bf16 are exact in fp32."""
        tensors = load(f"{self.set_name}.safetensors")
        found = {name: tensors[ref["key"]] if ref else None for name, ref in self.spec["inputs"].items()}
        return {name: t.float() if t is not None and t.dtype == torch.bfloat16 else t for name, t in found.items()}

    def output(self, name: str) -> Tensor:
        """An output of the original."""
        return load(f"{self.set_name}.safetensors")[self.spec["outputs"][name]["key"]]

    def noise(self, name: str) -> dict[str, float]:
        """The original's own rounding noise of an output."""
        return self.spec["noise"][name]


@cache
def manifest() -> dict[str, Any]:
    """The index of all cases."""
    return json.loads((ROOT / "manifest.json").read_text())


@cache
def load(name: str) -> dict[str, Tensor]:
    """A tensor file."""
    return load_file(ROOT / name)


def cases(set_name: str, kinds: tuple[str, ...] | None = None) -> list[Case]:
    """Cases of a set, of some kinds."""
    specs = manifest()["sets"][set_name]["cases"]
    return [Case(set_name, spec) for spec in specs if kinds is None or spec["kind"] in kinds]


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """Relative distance in the 2-norm, computed in fp64."""
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def assert_fp32(actual: Tensor, expected: Tensor, noise: dict[str, float]) -> float:
    """The manifest's fp32 rule; returns the distance as a multiple of the noise (0 where there is none)."""
    assert actual.shape == expected.shape
    max_abs = (actual.double() - expected.double()).abs().max().item()
    distance = relative_l2(actual, expected)
    assert max_abs <= 1e-6 * expected.abs().max().item() + 10 * noise["max_abs"]
    assert distance <= 1e-6 + 10 * noise["rel_l2"]
    return distance / noise["rel_l2"] if noise["rel_l2"] else 0.0


def assert_bf16(actual: Tensor, exact: Tensor, noise: dict[str, float]) -> float:
    """The manifest's bf16 rule: as near the exact result as the original; returns the ratio of the two errors."""
    ratio = relative_l2(actual, exact) / noise["rel_l2"]
    assert ratio <= BF16_FACTOR
    return ratio
