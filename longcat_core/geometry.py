"""Sizes of a video in pixels, latents and tokens, and the only place where one becomes another.

The Wan 2.1 VAE keeps the first frame and folds every four later ones into one latent; it shrinks height and width by
eight. The DiT cuts the latent into patches of 1 x 2 x 2, so pixel sizes are multiples of 16 and pixel lengths are 4n+1.
"""

from typing import NamedTuple

LATENT_CHANNELS = 16
TEMPORAL_SCALE = 4
SPATIAL_SCALE = 8
PATCH_SIZE = (1, 2, 2)
PIXEL_MULTIPLE = SPATIAL_SCALE * PATCH_SIZE[1]


class TokenGrid(NamedTuple):
    """Tokens along time, height and width; flattened in that order, width fastest."""

    frames: int
    height: int
    width: int

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width

    @property
    def num_tokens(self) -> int:
        """Length of the token sequence."""
        return self.frames * self.tokens_per_frame


class LatentShape(NamedTuple):
    """Latent frames, height and width of a video (the `T, H, W` of `[B, 16, T, H, W]`)."""

    frames: int
    height: int
    width: int

    def grid(self, patch_size: tuple[int, int, int] = PATCH_SIZE) -> TokenGrid:
        """Token grid after padding each axis up to a multiple of the patch."""
        return TokenGrid(*(-(-size // patch) for size, patch in zip(self, patch_size, strict=True)))

    def pixels(self) -> "PixelShape":
        """Pixel shape that the VAE decodes this latent to."""
        return PixelShape(
            TEMPORAL_SCALE * (self.frames - 1) + 1, SPATIAL_SCALE * self.height, SPATIAL_SCALE * self.width
        )


class PixelShape(NamedTuple):
    """Frames, height and width of a video in pixels."""

    frames: int
    height: int
    width: int

    def latent(self) -> LatentShape:
        """Latent shape of this video.

        Raises:
            ValueError: height or width is not a multiple of 16, or the length is not 4n+1; names the nearest sizes.
        """
        for name, size in (("width", self.width), ("height", self.height)):
            if size < PIXEL_MULTIPLE or size % PIXEL_MULTIPLE:
                raise ValueError(
                    f"{name} is {size} pixels; LongCat-Video needs a multiple of {PIXEL_MULTIPLE}. "
                    f"Use {_nearest(size, PIXEL_MULTIPLE, 0)}."
                )
        if self.frames < 1 or self.frames % TEMPORAL_SCALE != 1:
            raise ValueError(
                f"length is {self.frames} frames; LongCat-Video needs 4n+1 frames (1, 5, 9, ... 93). "
                f"Use {_nearest(self.frames, TEMPORAL_SCALE, 1)}."
            )
        return LatentShape(
            (self.frames - 1) // TEMPORAL_SCALE + 1, self.height // SPATIAL_SCALE, self.width // SPATIAL_SCALE
        )


def _nearest(size: int, multiple: int, remainder: int) -> str:
    """The valid sizes around `size`, as words."""
    smallest = remainder or multiple
    below = (size - remainder) // multiple * multiple + remainder
    return f"{smallest}" if below < smallest else f"{below} or {below + multiple}"
