"""The sizes that LongCat-Video was trained on.

One list per resolution, all of about the same area; an image or video is stretched to the entry whose shape is
nearest to its own. Source: meituan-longcat/LongCat-Video, `utils/bukcet_config.py` and `get_condition_shape`, for one
device (sizes that are multiples of 32; of refined videos, which block-sparse attention cuts into chunks, of 64).
"""

from typing import Literal, NamedTuple, get_args

Resolution = Literal["480p", "720p"]
RESOLUTIONS: tuple[Resolution, ...] = get_args(Resolution)
RefinedResolution = Literal["720p refined"]
REFINED: RefinedResolution = "720p refined"
MAX_STRETCH = 1.25


class Size(NamedTuple):
    """Height and width of a frame in pixels."""

    height: int
    width: int

    @property
    def aspect(self) -> float:
        """Height over width, to the two digits that the reference compares."""
        return round(self.height / self.width, 2)

    def stretch_to(self, other: "Size") -> float:
        """How much one side is stretched against the other by a resize, at least 1."""
        ratio = (self.height / self.width) / (other.height / other.width)
        return max(ratio, 1 / ratio)


BUCKETS: dict[Resolution | RefinedResolution, tuple[Size, ...]] = {
    "480p": tuple(
        Size(height, width)
        for height, width in (
            *((320, 1216), (352, 1120), (384, 1024), (416, 960), (448, 864), (480, 832), (512, 768), (544, 736)),
            *((576, 672), (608, 640), (640, 608), (672, 576), (704, 544), (736, 544), (768, 512), (800, 480)),
            *((832, 480), (896, 448), (960, 416), (992, 384), (1056, 384), (1088, 352), (1184, 320), (1216, 320)),
            *((1248, 320), (1280, 320)),
        )
    ),
    "720p": tuple(
        Size(height, width)
        for height, width in (
            *((480, 1920), (512, 1792), (544, 1696), (576, 1600), (608, 1504), (672, 1376), (704, 1312), (736, 1248)),
            *((800, 1152), (832, 1120), (864, 1056), (896, 1024), (928, 992), (960, 960), (992, 928), (1024, 896)),
            *((1056, 864), (1088, 832), (1120, 832), (1152, 800), (1248, 736), (1344, 672), (1376, 672), (1504, 608)),
            *((1536, 608), (1632, 576), (1664, 544), (1696, 544), (1856, 512), (1888, 480), (1920, 480)),
        )
    ),
    REFINED: tuple(
        Size(height, width)
        for height, width in (
            *((448, 2048), (512, 1792), (576, 1600), (640, 1408), (704, 1280), (768, 1216), (832, 1088), (896, 1024)),
            *((960, 960), (1024, 896), (1088, 832), (1152, 768), (1216, 768), (1280, 704), (1344, 704), (1408, 640)),
            *((1472, 640), (1536, 576), (1664, 576), (1856, 512), (1920, 512)),
        )
    ),
}


def nearest(resolution: Resolution | RefinedResolution, source: Size) -> Size:
    """The trained size of a resolution whose shape is nearest to that of `source`.

    Raises:
        ValueError: every trained shape is so far from the source's that the picture would be distorted.
    """
    ratio = source.height / source.width
    found = min(BUCKETS[resolution], key=lambda size: abs(size.aspect - ratio))
    if source.stretch_to(found) > MAX_STRETCH:
        raise ValueError(
            f"{source.width} x {source.height} pixels is too far from every shape that LongCat-Video was trained on at "
            f"{resolution}: the nearest is {found.width} x {found.height}, which would stretch it "
            f"{source.stretch_to(found):.1f} times. Crop it first, or set size to custom, which cuts it to width and "
            f"height."
        )
    return found
