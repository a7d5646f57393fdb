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
FRAMES_PER_SECOND = 15


def ceil_div(size: int, step: int) -> int:
    """How many steps cover a size."""
    return -(-size // step)


def up_to_multiple(size: int, step: int) -> int:
    """The smallest multiple of a step that is not below a size."""
    return ceil_div(size, step) * step


class SizeGrid(NamedTuple):
    """The sizes `step * n + rest` that are possible, and how to say so."""

    step: int
    rest: int
    rule: str

    def holds(self, size: int) -> bool:
        """Whether a size is possible."""
        return size >= (self.rest or self.step) and size % self.step == self.rest

    def floor(self, size: int) -> int:
        """The largest possible size that is not above `size`; below the smallest one it is not positive."""
        return (size - self.rest) // self.step * self.step + self.rest

    def advice(self, size: int) -> str:
        """The rule and the possible sizes next to one that is not."""
        smallest = self.rest or self.step
        below = self.floor(size)
        near = f"{smallest}" if below < smallest else f"{below} or {below + self.step}"
        return f"must be {self.rule} (use {near}), it is {size}"


PIXEL_GRID = SizeGrid(PIXEL_MULTIPLE, 0, f"a multiple of {PIXEL_MULTIPLE}")
LENGTH_GRID = SizeGrid(TEMPORAL_SCALE, 1, f"{TEMPORAL_SCALE}n+1")


def latent_frames(num_frames: int) -> int:
    """Latent frames that hold `num_frames` video frames: the first frame alone, then one for every four or fewer."""
    return 1 + ceil_div(num_frames - 1, TEMPORAL_SCALE)


def video_frames(num_latents: int) -> int:
    """Video frames that `num_latents` latent frames are decoded to."""
    return 1 + (num_latents - 1) * TEMPORAL_SCALE


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
        return TokenGrid(*map(ceil_div, self, patch_size))

    def pixels(self) -> "PixelShape":
        """Pixel shape that the VAE decodes this latent to."""
        return PixelShape(video_frames(self.frames), SPATIAL_SCALE * self.height, SPATIAL_SCALE * self.width)


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
        checks = (
            ("width", PIXEL_GRID, self.width),
            ("height", PIXEL_GRID, self.height),
            ("length", LENGTH_GRID, self.frames),
        )
        problems = [f"{name} {grid.advice(size)}" for name, grid, size in checks if not grid.holds(size)]
        if problems:
            raise ValueError(f"LongCat-Video cannot make a video of this size: {'; '.join(problems)}.")
        return LatentShape(latent_frames(self.frames), self.height // SPATIAL_SCALE, self.width // SPATIAL_SCALE)
