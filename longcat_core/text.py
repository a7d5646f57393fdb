"""What happens to a prompt before and after UMT5: the reference's cleaning, and its fixed 512 tokens."""

import html
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
    context = torch.nn.functional.pad(context, (0, 0, 0, TEXT_TOKENS - context.shape[1]))
    return context, (context != 0).any(dim=-1).to(context.dtype)
