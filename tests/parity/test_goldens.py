"""The pack against the original implementation, case by case."""

from collections.abc import Iterator

import comfy.ops
import pytest
import torch
from adapter import Adapter
from goldens import (
    BF16_SAMPLER_TOLERANCE,
    EXACT,
    Case,
    assert_bf16,
    assert_fp32,
    cases,
    relative_l2,
)
from toy import ToyNetwork

T2V_LOOPS = ("t2v",)
PIECES = tuple({case.spec["kind"] for case in cases("pieces")})
OPERATIONS = {"disable_weight_init": comfy.ops.disable_weight_init, "manual_cast": comfy.ops.manual_cast}


def of_loop(set_name: str, kind: str) -> list[Case]:
    """Sampling cases of the loops that the pack has."""
    return [case for case in cases(set_name, (kind,)) if case.args["loop"] in T2V_LOOPS]


def each(selected: list[Case]) -> pytest.MarkDecorator:
    """One test per case."""
    assert selected
    return pytest.mark.parametrize("case", selected, ids=lambda case: case.id)


@pytest.fixture(scope="module")
def worst(report: list[str]) -> Iterator[dict[str, tuple[float, str]]]:
    """Largest deviation so far, in multiples of the original's own noise; reported at the end."""
    found: dict[str, tuple[float, str]] = {}
    yield found
    for rule, (multiple, case_id) in sorted(found.items()):
        report.append(f"worst {rule} deviation from the original: {multiple:.2f}x its own noise ({case_id})")
    assert found.get("fp32", (0.0, ""))[0] <= 1.5


def note(worst: dict[str, tuple[float, str]], rule: str, multiple: float, case: Case) -> None:
    """Keep the largest."""
    worst[rule] = max(worst.get(rule, (0.0, "")), (multiple, case.id))


@each(cases("dit_t2v"))
@pytest.mark.parametrize("operations", OPERATIONS)
@torch.no_grad()
def test_network(case: Case, operations: str, worst: dict) -> None:
    i = case.inputs()
    network = Adapter(OPERATIONS[operations]).dit(case.config, case.state, case.dtype, [])
    hidden_states, text = i["hidden_states"].to(case.dtype), i["encoder_hidden_states"].to(case.dtype)
    out = network(hidden_states, i["timestep"], text, i["encoder_attention_mask"])
    assert out.dtype == torch.float32
    if case.dtype == torch.bfloat16:
        note(worst, "bf16", assert_bf16(out, case.output("out64"), case.noise("out")), case)
    else:
        note(worst, "fp32", assert_fp32(out, case.output("out"), case.noise("out")), case)


@each(cases("pieces", PIECES))
@torch.no_grad()
def test_piece(case: Case, worst: dict) -> None:
    out = Adapter().piece(case.spec["kind"], case.id, case.config, case.state, case.inputs(), case.args)
    note(worst, "fp32", assert_fp32(out, case.output("out"), case.noise("out")), case)


@each(cases("rope_3d", ("rope",)))
def test_rope(case: Case, worst: dict) -> None:
    i = case.inputs()
    for name, out in zip("qk", Adapter().rope(i["q"], i["k"], case.args["grid"], case.args["head_dim"]), strict=True):
        note(worst, "fp32", assert_fp32(out, case.output(name), case.noise(name)), case)


@each(cases("rope_3d", ("rope_rows",)))
def test_rope_of_full_size_grids(case: Case, worst: dict) -> None:
    i, (frames, height, width) = case.inputs(), case.args["grid"]
    x = i["u"].expand(1, 1, frames * height * width, case.args["head_dim"])
    out, _ = Adapter().rope(x, x, case.args["grid"], case.args["head_dim"])
    note(worst, "fp32", assert_fp32(out[:, :, i["rows"].long()], case.output("q"), case.noise("q")), case)


@each(cases("samplers", ("schedule",)))
def test_schedule(case: Case) -> None:
    a = case.args
    timesteps, sigmas = Adapter().schedule(a["N"], a["shift"], a["schedule"], a["t_thresh"])
    assert_fp32(timesteps, case.output("timesteps"), EXACT)
    assert_fp32(sigmas, case.output("sigmas"), EXACT)
    assert torch.equal(timesteps.bfloat16().float(), case.output("timesteps_as_seen_by_bf16_dit").float())


@each(of_loop("samplers", "sampler"))
def test_loop_with_stand_in_network(case: Case, worst: dict) -> None:
    i = case.inputs()
    network = ToyNetwork(i["P"], case.dtype)
    found = Adapter().sample(case.args["loop"], network, i, case.args)
    first, last = case.output("dit_timestep_first"), case.output("dit_timestep_last")
    if case.dtype == torch.bfloat16:
        assert relative_l2(found["final"], case.output("final")) <= BF16_SAMPLER_TOLERANCE
        assert torch.equal(network.timesteps[0].double(), first.double())
        assert torch.equal(network.timesteps[-1].double(), last.double())
    else:
        note(worst, "fp32", assert_fp32(found["final"], case.output("final"), case.noise("final")), case)
        assert_fp32(network.timesteps[0], first, EXACT)
        assert_fp32(network.timesteps[-1], last, EXACT)
    if "st_star" in found:
        tolerance = 1e-3 if case.dtype == torch.bfloat16 else 1e-5
        assert relative_l2(found["st_star"].flatten(), case.output("st_star").flatten()) <= tolerance


@each(of_loop("loops", "loop"))
def test_loop_through_comfyui(case: Case, worst: dict) -> None:
    network = Adapter().dit(case.config, case.state, case.dtype, [])
    found = Adapter().sample(case.args["loop"], network, case.inputs(), case.args)
    note(worst, "fp32", assert_fp32(found["final"], case.output("final"), case.noise("final")), case)
    assert_fp32(found["sigmas"], case.output("sigmas"), EXACT)
