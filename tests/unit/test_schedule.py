"""The schedules' values are checked against the original in tests/parity; here: their documented shape and errors."""

import pytest
import torch

from longcat_core.schedule import MODES, sigmas


@pytest.mark.parametrize(
    ("mode", "steps", "calls"), [("base", 50, 50), ("distill", 16, 16), ("enhance_hf", 50, 56), ("refine", 50, 5)]
)
def test_number_of_model_calls(mode: str, steps: int, calls: int) -> None:
    assert len(sigmas(mode, steps)) == calls + 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 12.0])
def test_descends_to_zero(mode: str, steps: int, shift: float) -> None:
    values = sigmas(mode, steps, shift)
    assert values.dtype == torch.float32
    assert (values.diff() < 0).all()
    assert values[-1] == 0
    assert values[0] <= 1


def test_refine_starts_at_the_threshold() -> None:
    assert sigmas("refine", 50, threshold=0.3)[0] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "fast", "steps": 8}, "must be one of base, distill"),
        ({"mode": "base", "steps": 0}, "at least 1"),
        ({"mode": "distill", "steps": 51}, "has 50 sigmas"),
        ({"mode": "base", "steps": 8, "shift": 0.0}, "shift is 0.0"),
        ({"mode": "refine", "steps": 8, "threshold": 1.0}, "threshold is 1.0"),
    ],
)
def test_bad_arguments(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sigmas(**arguments)
