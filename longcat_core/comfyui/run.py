"""What a sampling run has in common for all of its calls."""

from dataclasses import dataclass, replace

from torch import Tensor

from ..frames.latents import leading_clean_frames
from ..network.kv_cache import KVCache


@dataclass(frozen=True)
class Run:
    """A sampling run of a model; outside of one there is none.

    The condition frames are known when ComfyUI hands the conditioning over. A cache for them is decided on before
    that, as ComfyUI plans its memory then.
    """

    num_cond_latents: int = 0
    """Leading latent frames that are given."""
    given: Tensor | None = None
    """Those frames `[B, 16, t, H, W]` as the network gets them."""
    cache: KVCache | None = None

    def of(self, denoise_mask: Tensor | None, latent_image: Tensor | None) -> "Run":
        """The run of a latent `[B, 16, T, H, W]` whose leading, fully masked frames are given.

        A run that knows its frames stays as it is: ComfyUI hands the same mask and latent over with every prompt.
        """
        if self.given is not None:
            return self
        count = leading_clean_frames(denoise_mask)
        given = latent_image[:, :, :count].clone() if count and latent_image is not None else None
        return replace(self, num_cond_latents=count, given=given)
