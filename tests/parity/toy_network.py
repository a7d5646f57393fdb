"""The closed-form stand-in for the network that the sampling goldens were made with.

It stands where the reference's network does: it predicts `clean - noise` from the latent, the timestep, a pooled text
and the mean of the condition frames, is cheap, and depends on everything that a sampling loop can get wrong.
"""

import torch
from torch import Tensor


class ToyNetwork:
    """`v(x, t, text, condition)`; inputs are rounded to `dtype` first, as the reference's network does.

    The rest is computed in fp32. Its "cache" is the mean condition frame `[1, 16, 1, H, W]`.
    """

    is_toy = True

    def __init__(self, text_projection: Tensor, dtype: torch.dtype) -> None:
        self.text_projection = text_projection.float()
        self.dtype = dtype
        self.timesteps: list[Tensor] = []

    def __call__(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text: Tensor,
        mask: Tensor | None,
        num_cond_latents: int = 0,
        return_kv: bool = False,
        kv_cache_dict: Tensor | None = None,
        skip_crs_attn: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Latents `[B, 16, T, H, W]`, timesteps `[B, T]`, text `[B, 1, N, C]`, mask `[B, N]`."""
        x, t = self.rounded(hidden_states), self.rounded(timestep)
        sigma = (t / 1000)[:, None, :, None, None]
        local = 0.6 * x + 0.25 * x.roll(1, -1) - 0.2 * x.roll(1, -2) + 0.15 * torch.sin(2 * x)
        out = local * (0.5 + sigma)
        if not skip_crs_attn:
            out = out + (0.3 + sigma) * self.prompt(text, mask)
        if return_kv:
            return out, mean_frame(x)
        self.timesteps.append(t)
        condition = kv_cache_dict
        if condition is None and num_cond_latents:
            condition = mean_frame(x[:, :, :num_cond_latents])
        return out if condition is None else out + 0.2 * torch.tanh(condition) * (1 - sigma)

    def prompt(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """The pooled text in latent channels, `[B, 16, 1, 1, 1]`."""
        tokens = self.rounded(text)[:, 0]
        weights = torch.ones(tokens.shape[:2]) if mask is None else mask.float()
        pooled = (tokens * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)
        return torch.tanh(pooled @ self.text_projection)[:, :, None, None, None]

    def rounded(self, value: Tensor) -> Tensor:
        """The value as a network of this dtype sees it."""
        return value.to(self.dtype).float()


def mean_frame(x: Tensor) -> Tensor:
    """Mean over time, `[B, 16, 1, H, W]`."""
    return x.mean(2, keepdim=True)
