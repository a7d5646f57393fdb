"""The closed-form stand-in for the network that the sampling goldens were made with.

It stands where the reference's network does: it predicts `clean - noise` from the latent, the timestep and a pooled
text, is cheap, and depends on everything that a sampling loop can get wrong.
"""

import torch
from torch import Tensor


class ToyNetwork:
    """`v(x, t, text)`; inputs are rounded to `dtype` first, as the reference's network does, then computed in fp32."""

    is_toy = True

    def __init__(self, text_projection: Tensor, dtype: torch.dtype) -> None:
        self.text_projection = text_projection.float()
        self.dtype = dtype
        self.timesteps: list[Tensor] = []

    def __call__(self, hidden_states: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Latents `[B, 16, T, H, W]`, timesteps `[B]`, text `[B, 1, N, C]`, mask `[B, N]`."""
        x = self.rounded(hidden_states)
        t = self.rounded(timestep[:, None].expand(-1, x.shape[2]))
        self.timesteps.append(t)
        sigma = (t / 1000)[:, None, :, None, None]
        weights = mask.float()
        pooled = (self.rounded(text)[:, 0] * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)
        prompt = torch.tanh(pooled @ self.text_projection)[:, :, None, None, None]
        local = 0.6 * x + 0.25 * x.roll(1, -1) - 0.2 * x.roll(1, -2) + 0.15 * torch.sin(2 * x)
        return local * (0.5 + sigma) + (0.3 + sigma) * prompt

    def rounded(self, value: Tensor) -> Tensor:
        """The value as a network of this dtype sees it."""
        return value.to(self.dtype).float()
