"""What happens to a prompt before and after UMT5: the reference's cleaning, and its fixed 512 tokens."""

import html
import logging
import re

import ftfy
import torch

TEXT_TOKENS = 512


def clean_prompt(text: str) -> str:
    """Repair mojibake, resolve HTML entities (twice, as the reference does) and collapse white space."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def fixed_length(context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad or cut a text encoding to the 512 tokens that the network was trained with.

    Args:
        context: `[B, N, C]`, rows of zeros mean padding (ComfyUI's UMT5 writes them so).

    Returns:
        context `[B, 512, C]` and its mask `[B, 512]`, 1 = real token.
    """
    real = (context != 0).any(dim=-1)
    if context.shape[1] > TEXT_TOKENS:
        # Several encodings in a row (ConditioningConcat) have padding between them: cut that first.
        order = torch.argsort(real, dim=1, descending=True, stable=True)
        context = context.gather(1, order.unsqueeze(-1).expand_as(context))
        longest = int(real.sum(dim=1).max())
        if longest > TEXT_TOKENS:
            logging.warning("LongCat-Video reads %d text tokens; the last of %d are cut.", TEXT_TOKENS, longest)
    context = torch.nn.functional.pad(context, (0, 0, 0, TEXT_TOKENS - context.shape[1]))
    return context, (context != 0).any(dim=-1).to(context.dtype)
