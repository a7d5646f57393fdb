import pytest
import torch

from longcat_core.frames.geometry import TokenGrid
from longcat_core.network.rope import axes_dim, positions

CPU = torch.device("cpu")


@pytest.mark.parametrize(("head_dim", "axes"), [(128, [44, 42, 42]), (64, [24, 20, 20]), (32, [12, 10, 10])])
def test_share_of_each_axis(head_dim: int, axes: list[int]) -> None:
    assert axes_dim(head_dim) == axes
    assert sum(axes) == head_dim


def test_head_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim is 36"):
        axes_dim(36)


def test_width_is_fastest_and_time_slowest() -> None:
    found = positions(TokenGrid(2, 2, 3), CPU)[0].tolist()
    assert found == [[t, y, x] for t in (0, 1) for y in (0, 1) for x in (0, 1, 2)]


def test_options_shift_and_stretch_an_axis() -> None:
    options = {"shift_t": 10.0, "scale_x": 0.5, "shift_y": -1.0}
    found = positions(TokenGrid(2, 2, 3), CPU, options)[0].tolist()
    assert found == [[10 + t, y - 1, 0.5 * x] for t in (0, 1) for y in (0, 1) for x in (0, 1, 2)]
