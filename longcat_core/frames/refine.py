"""What refinement starts from: a finished video at the new size and frame rate, padded for block-sparse attention.

The refinement LoRA was trained to begin at a noise level of 0.5 with an upscaled video under the noise, which is what
any ComfyUI sampler makes of a latent and sigmas that begin there (`schedule.py`, mode refine). Given frames, the end of
a segment refined before, come first, as in any continuation.

Condition and noise latents are each a multiple of 4, the chunk of block-sparse attention, so that no chunk holds both:
frames are repeated in front of the given ones and behind the last, and dropped after decoding.

Source: meituan-longcat/LongCat-Video, `generate_refine` and `prepare_latents`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from . import buckets
from .geometry import TEMPORAL_SCALE, ceil_div, latent_frames, up_to_multiple, video_frames
from .shown import LATENT_MULTIPLE

RefineMode = Literal["spatial+temporal", "spatial"]
REFINE_MODES: tuple[RefineMode, ...] = get_args(RefineMode)
DEFAULT_REFINE_COND_FRAMES = 26  # twice what the reference continues videos with


@dataclass(frozen=True)
class RefineFrames:
    """Frames of a refined video of which the first `num_cond_frames` (0: none) are given."""

    num_frames: int
    num_cond_frames: int = 0

    def __post_init__(self) -> None:
        if self.num_cond_frames >= self.num_frames:
            raise ValueError(
                f"{self.num_cond_frames} condition frames leave nothing to refine in a video that will have "
                f"{self.num_frames} frames. Connect a longer video, or lower num_cond_frames."
            )

    @property
    def num_cond_latents(self) -> int:
        """Latents that the given frames fill, those repeated in front of them included."""
        return up_to_multiple(latent_frames(self.num_cond_frames), LATENT_MULTIPLE) if self.num_cond_frames else 0

    @property
    def num_latents(self) -> int:
        """All latents.

        Where the number of frames is a multiple of 16 or up to 2 less, and none is given, the reference makes room for
        all but the last ones; here all have room.
        """
        if not self.num_cond_frames:
            return up_to_multiple(latent_frames(self.num_frames), LATENT_MULTIPLE)
        num_noise_latents = ceil_div(self.num_frames - self.num_cond_frames, TEMPORAL_SCALE)
        return self.num_cond_latents + up_to_multiple(num_noise_latents, LATENT_MULTIPLE)

    @property
    def front(self) -> int:
        """How often the first frame is repeated before itself."""
        return video_frames(self.num_cond_latents) - self.num_cond_frames if self.num_cond_frames else 0

    @property
    def back(self) -> int:
        """How often the last frame is repeated after itself."""
        return video_frames(self.num_latents) - self.front - self.num_frames

    @property
    def shown(self) -> tuple[int, int]:
        """The first decoded frame that is not padding, and how many there are."""
        return self.front, self.num_frames


def refined_length(num_frames: int, mode: RefineMode) -> int:
    """Frames of the refined video: as many, or twice as many at twice the frame rate."""
    return 2 * num_frames if mode == "spatial+temporal" else num_frames


def upscaled(frames: Tensor, num_frames: int, height: int, width: int) -> Tensor:
    """Frames `[F, H, W, C]` to `[num_frames, height, width, C]`, linear in space and time, the corners kept.

    The reference enlarges first and interpolates frames then, which is the same: the two are independent.
    """
    video, size = rearrange(frames, "f h w c -> 1 c f h w"), (num_frames, height, width)
    larger = torch.nn.functional.interpolate(video, size=size, mode="trilinear", align_corners=True)
    return rearrange(larger, "1 c f h w -> f h w c")


def padded(frames: Tensor, front: int, back: int = 0) -> Tensor:
    """Frames `[F, H, W, C]` with the first and the last one repeated."""
    index = torch.arange(-front, len(frames) + back, device=frames.device).clamp(0, len(frames) - 1)
    return frames[index]


def check_frames(frames: Tensor, mode: RefineMode) -> None:
    """Raise ValueError unless there are frames enough to refine; more of them come from between two."""
    least = 2 if mode == "spatial+temporal" else 1
    if len(frames) < least:
        raise ValueError(
            f"The video to refine has {len(frames)} frames; mode {mode} needs at least {least}. Connect the frames of "
            f"a whole video as one batch of images (not a list){', or choose mode spatial' if len(frames) else ''}."
        )


def last_given(given: Tensor, num_cond_frames: int, target: buckets.Size) -> Tensor:
    """The end of given frames `[F, H, W, 3]`, for a refined video of pixels `target`; an image is a single one.

    Raises:
        ValueError: they are fewer, or of quite another shape than the refined video.
    """
    num_cond_frames = 1 if len(given) == 1 else num_cond_frames
    size = buckets.Size(*given.shape[1:3])
    if len(given) < num_cond_frames:
        raise ValueError(
            f"condition_frames holds {len(given)} frames and num_cond_frames is {num_cond_frames}. Connect the whole "
            f"refined segment before this one, or lower num_cond_frames."
        )
    if size.stretch_to(target) > buckets.MAX_STRETCH:
        raise ValueError(
            f"condition_frames is {size.width} x {size.height} pixels and the refined video {target.width} x "
            f"{target.height}: shapes that differ this much are of different videos. Connect the segment that was "
            f"refined before this one, or crop the frames first."
        )
    return given[-num_cond_frames:]
