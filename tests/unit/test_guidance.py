import pytest
import torch

from longcat_core.guidance import cfg_zero, cfg_zero_denoised, projection_scale


def velocities(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cond = torch.randn(batch, 16, 3, 4, 5, generator=generator)
    return cond, 0.7 * cond + 0.5 * torch.randn(cond.shape, generator=generator)


def test_formula_written_out_per_sample() -> None:
    cond, uncond = velocities()
    for c, u, guided in zip(cond, uncond, cfg_zero(cond, uncond, 4.0), strict=True):
        alpha = (c.flatten() @ u.flatten()) / (u.flatten() @ u.flatten() + 1e-8)
        torch.testing.assert_close(guided, alpha * u + 4.0 * (c - alpha * u))


def test_samples_of_a_batch_do_not_mix() -> None:
    cond, uncond = velocities()
    together = cfg_zero(cond, uncond, 4.0)
    torch.testing.assert_close(together[1:], cfg_zero(cond[1:], uncond[1:], 4.0))


def test_scale_one_is_the_conditional_velocity() -> None:
    cond, uncond = velocities()
    torch.testing.assert_close(cfg_zero(cond, uncond, 1.0), cond)


def test_scale_ignores_sign_and_common_factors() -> None:
    cond, uncond = velocities()
    torch.testing.assert_close(projection_scale(-0.3 * cond, -0.3 * uncond), projection_scale(cond, uncond))


def test_bf16_velocities_are_scaled_in_fp32() -> None:
    cond, uncond = (v.bfloat16() for v in velocities())
    assert torch.equal(projection_scale(cond, uncond), projection_scale(cond.float(), uncond.float()))


@pytest.mark.parametrize("sigma", [1.0, 0.5, 0.01])
def test_denoised_form_equals_the_velocity_form(sigma: float) -> None:
    cond, uncond = velocities()
    x = torch.randn(cond.shape, generator=torch.Generator().manual_seed(1))
    cond_denoised, uncond_denoised = x - sigma * cond, x - sigma * uncond
    ordinary = uncond_denoised + 4.0 * (cond_denoised - uncond_denoised)
    found = cfg_zero_denoised(x, ordinary, cond_denoised, uncond_denoised, 4.0)
    torch.testing.assert_close(found, x - sigma * cfg_zero(cond, uncond, 4.0), atol=1e-5, rtol=0)
