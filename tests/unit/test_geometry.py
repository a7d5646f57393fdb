import pytest

from longcat_core.frames.geometry import LatentShape, PixelShape, TokenGrid


@pytest.mark.parametrize(
    ("pixels", "latent", "num_tokens"),
    [
        # The token counts that the model's authors give for 480p and for 720p after refinement.
        (PixelShape(93, 480, 832), LatentShape(24, 60, 104), 37_440),
        (PixelShape(189, 704, 1280), LatentShape(48, 88, 160), 168_960),
        (PixelShape(1, 16, 16), LatentShape(1, 2, 2), 1),
    ],
)
def test_pixels_latents_and_tokens(pixels: PixelShape, latent: LatentShape, num_tokens: int) -> None:
    assert pixels.latent() == latent
    assert latent.pixels() == pixels
    assert latent.grid().num_tokens == num_tokens


def test_odd_latents_are_padded_to_the_patch() -> None:
    assert LatentShape(3, 5, 7).grid() == TokenGrid(3, 3, 4)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (PixelShape(93, 480, 830), "width must be a multiple of 16 (use 816 or 832)"),
        (PixelShape(93, 8, 832), "height must be a multiple of 16 (use 16)"),
        (PixelShape(94, 480, 832), "length must be 4n+1 (use 93 or 97)"),
        (PixelShape(0, 480, 832), "length must be 4n+1 (use 1)"),
    ],
)
def test_sizes_off_the_grid_name_the_nearest(pixels: PixelShape, said: str) -> None:
    with pytest.raises(ValueError, match="cannot make") as error:
        pixels.latent()
    assert said in str(error.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"width .*; height .*; length .*"):
        PixelShape(2, 3, 5).latent()
