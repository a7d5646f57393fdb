import pytest

from longcat_core.frames.buckets import BUCKETS, RESOLUTIONS, Resolution, Size, nearest
from longcat_core.frames.geometry import PixelShape


@pytest.mark.parametrize(
    ("width", "height", "at_480p", "at_720p"),
    [
        # What the original's get_condition_shape answers, as width x height.
        (1920, 1080, (832, 480), (1312, 704)),
        (1080, 1920, (480, 832), (736, 1248)),
        (832, 480, (832, 480), (1248, 736)),
        (1024, 768, (736, 544), (1120, 832)),
        (1200, 1600, (544, 736), (832, 1120)),
        (2350, 1000, (960, 416), (1504, 608)),
        (544, 1280, (416, 960), (608, 1504)),
        (2, 3, (512, 768), (800, 1152)),
        (400, 100, (1216, 320), (1920, 480)),
        (100, 400, (320, 1280), (480, 1920)),
        # 1.00 is as far from 0.95 as from 1.05; the first one counts.
        (1024, 1024, (640, 608), (960, 960)),
        # The original compares two digits: exact shapes would give 768 x 512 at 480p here, ...
        (800, 500, (832, 480), (1248, 736)),
        # ... 1312 x 704 at 720p here, ...
        (740, 380, (864, 448), (1376, 672)),
        # ... and 1216 x 320 at 480p here.
        (1120, 320, (1120, 352), (1792, 512)),
    ],
)
def test_nearest_is_the_originals(width: int, height: int, at_480p: tuple[int, int], at_720p: tuple[int, int]) -> None:
    for resolution, expected in zip(RESOLUTIONS, (at_480p, at_720p), strict=True):
        found = nearest(resolution, Size(height, width))
        assert (found.width, found.height) == expected


@pytest.mark.parametrize(("resolution", "count", "area"), [("480p", 26, 480 * 832), ("720p", 31, 736 * 1248)])
def test_trained_sizes(resolution: Resolution, count: int, area: int) -> None:
    sizes = BUCKETS[resolution]
    assert len(set(sizes)) == count
    assert [size.aspect for size in sizes] == sorted(size.aspect for size in sizes)
    for size in sizes:
        assert size.height % 32 == size.width % 32 == 0
        assert size.height * size.width == pytest.approx(area, rel=0.06)
        assert PixelShape(93, *size).latent().pixels() == PixelShape(93, *size)
        assert nearest(resolution, size) == size


@pytest.mark.parametrize(
    ("resolution", "width", "height", "said"),
    [
        ("480p", 1000, 100, "1000 x 100 pixels .* at 480p: the nearest is 1216 x 320, .* stretch it 2.6 times. Crop"),
        ("720p", 100, 1000, "100 x 1000 pixels .* at 720p: the nearest is 480 x 1920, .* stretch it 2.5 times. Crop"),
    ],
)
def test_shapes_far_from_every_trained_one_are_refused(
    resolution: Resolution, width: int, height: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        nearest(resolution, Size(height, width))


def test_stretch_of_a_quarter_is_the_limit() -> None:
    """1216 x 320 is 3.8 wide, a quarter more is 4.75."""
    assert nearest("480p", Size(100, 475)) == Size(320, 1216)
    with pytest.raises(ValueError, match="too far"):
        nearest("480p", Size(100, 476))
