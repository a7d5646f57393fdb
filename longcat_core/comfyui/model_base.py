"""How ComfyUI's samplers see the network: conditioning, timesteps and condition frames.

Condition frames need no model of their own: they are the leading latent frames that the noise mask fully protects.
"""

from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..frames.geometry import LatentShape
from ..frames.latents import leading_window_frames
from ..network.dit import LongCatVideoTransformer
from ..network.spans import activation_bytes
from ..text import fixed_length
from .bypass import stack_bypassed
from .run import Run


class LongCatVideoModel(comfy.model_base.BaseModel):
    """A flow model with one timestep per latent frame and clean condition frames.

    Any other mask than a run of fully kept leading frames is ordinary inpainting, as in core.
    """

    def __init__(self, model_config: Any, device: torch.device | None = None) -> None:
        super().__init__(
            model_config,
            comfy.model_base.ModelType.FLOW,
            device=device,
            unet_model=LongCatVideoTransformer,
        )

    @property
    def current_patcher(self) -> ModelPatcher | None:
        """The patcher that samples: core sets it when a run begins, and takes it back however the run ends.

        With it the run is over, and nothing of it stays on the model. As it begins, the patcher gets back the bypassed
        LoRAs that core has lost (`bypass.py`).
        """
        return self._current_patcher

    @current_patcher.setter
    def current_patcher(self, patcher: ModelPatcher | None) -> None:
        self._current_patcher = patcher
        if patcher is None:
            self.run: Run | None = None
        else:
            stack_bypassed(patcher)

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, Any] = {}) -> float:  # noqa: B006 - core's signature
        """Bytes that ComfyUI keeps free for a call, with those that a cache of this run will take.

        Core's own estimate stands where attention may keep scores.
        """
        cache = self.run and self.run.cache
        device = self.current_patcher and self.current_patcher.load_device
        reserved = cache.bytes_to_come(device) if cache else 0
        mm = comfy.model_management
        if not (mm.xformers_enabled() or mm.pytorch_attention_flash_attention()):
            return super().memory_required(input_shape, cond_shapes=cond_shapes) + reserved
        grid = LatentShape(*input_shape[2:]).grid(self.diffusion_model.patch_size)
        itemsize = self.get_dtype_inference().itemsize
        num_tokens = input_shape[0] * grid.num_tokens
        hidden_size = self.diffusion_model.hidden_size
        return activation_bytes(num_tokens, hidden_size, itemsize, has_cache=bool(cache)) + reserved

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Text, condition frames and their cache for the network.

        Raises:
            ValueError: as `text_conds`.
        """
        run = (self.run or Run()).of(kwargs.get("denoise_mask"), kwargs.get("latent_image"))
        if self.current_patcher is not None:
            self.run = run
        return {
            **super().extra_conds(**kwargs),
            **self.text_conds(kwargs["cross_attn"], kwargs.get("attention_mask")),
            "num_cond_latents": comfy.conds.CONDConstant(run.num_cond_latents),
            "kv_cache": comfy.conds.CONDConstant(run.cache),
        }

    def text_conds(self, context: Tensor, mask: Tensor | None) -> dict[str, Any]:
        """A prompt's encoding `[B, N, C]` for the network.

        A conditioning that carries `attention_mask` `[B, N]` is used as it is; one that does not is brought to 512
        tokens, rows of zeros being padding.

        Raises:
            ValueError: the text is not of the model's own text encoder, or its mask is of another length.
        """
        channels = self.model_config.unet_config["caption_channels"]
        if context.shape[-1] != channels:
            raise ValueError(
                f"The prompt was encoded with {context.shape[-1]} channels; this LongCat-Video model needs {channels}. "
                f"Encode it with the model's own UMT5: CLIP from LongCat Loader, or Load CLIP with type wan."
            )
        if mask is None:
            context, mask = fixed_length(context)
        elif mask.shape[-1] != context.shape[1]:
            raise ValueError(
                f"The conditioning has {context.shape[1]} text tokens but an attention_mask of {mask.shape[-1]}: "
                f"they must be of one length. Leave the mask out if rows of zeros are the padding."
            )
        return {"c_crossattn": comfy.conds.CONDRegular(context), "context_mask": comfy.conds.CONDRegular(mask)}

    def process_timestep(self, timestep: Tensor, x: Tensor, num_cond_latents: int = 0, **kwargs: Any) -> Tensor:
        """Timesteps `[B]` to one per latent frame `[B, T]`, 0 on condition frames."""
        per_frame = timestep.view(-1, 1).repeat(1, x.shape[2])
        per_frame[:, :num_cond_latents] = 0
        return per_frame

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **kwargs: Any) -> Tensor:
        """What the sampler puts under the mask: condition frames clean, anything else noised to the current sigma."""
        out = super().scale_latent_inpaint(sigma=sigma, noise=noise, latent_image=latent_image, **kwargs)
        # The sampler asks without saying which mask.
        num_cond_latents = self.run.num_cond_latents if self.run else 0
        out[:, :, :num_cond_latents] = latent_image[:, :, :num_cond_latents]
        return out

    def process_latent_out(self, latent: Tensor) -> Tensor:
        """A sampled latent `[B, 16, T, H, W]` as the VAE takes it, with the condition frames as they were given.

        Samplers end with other values there: uni_pc and dpm_fast drift, and one that stops before sigma 0 leaves noise,
        which a second stage would take for the given frames. Outside of a run nothing is changed.

        Raises:
            ValueError: a run ended with numbers that are not finite, which would be decoded to a black video.
        """
        if self.current_patcher and not torch.isfinite(latent).all():
            raise ValueError(
                "Sampling ended with numbers that are not finite. Most likely the weights or a LoRA are damaged: "
                "compare the files' sizes with those of the download, and try without LoRAs."
            )
        if self.run and self.run.given is not None:
            given = self.run.given[: latent.shape[0]].to(latent)  # a preview may be of the first video alone
            latent = torch.cat([given, latent[:, :, given.shape[2] :]], dim=2)
        return super().process_latent_out(latent)

    def resize_cond_for_context_window(
        self, cond_key: str, cond_value: Any, window: Any, x_in: Tensor, device: torch.device, **kwargs: Any
    ) -> Any:
        """Count the condition frames that a context window starts with."""
        if cond_key != "num_cond_latents":
            return super().resize_cond_for_context_window(cond_key, cond_value, window, x_in, device, **kwargs)
        anchor = getattr(window, "causal_anchor_index", None)
        frames = list(window.index_list) if anchor is None or anchor < 0 else [anchor, *window.index_list]
        return comfy.conds.CONDConstant(leading_window_frames(frames, cond_value.cond))
