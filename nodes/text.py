"""Encode a prompt as the model was trained on it."""

from typing import Any

from comfy_api.latest import io

from ..longcat_core.text import TEXT_TOKENS, clean_prompt
from .inputs import clip_input

UMT5 = "umt5xxl"


def tokenize(clip: Any, text: str) -> dict[str, list]:
    """Clean a prompt and tokenize it to at most 512 tokens, the last one being the end token.

    Raises:
        ValueError: `clip` is not the UMT5 text encoder.
    """
    tokens = clip.tokenize(clean_prompt(text), disable_weights=True)
    if UMT5 not in tokens:
        raise ValueError(
            f"The connected text encoder is {', '.join(tokens)}; LongCat-Video needs UMT5-XXL. "
            f"Take CLIP from LongCat Loader, or from Load CLIP with type wan and a umt5_xxl file."
        )
    return {UMT5: [batch[: TEXT_TOKENS - 1] + batch[TEXT_TOKENS - 1 :][-1:] for batch in tokens[UMT5]]}


def encoded_prompt(clip: Any, text: str) -> list:
    """The CONDITIONING of a prompt.

    Raises:
        ValueError: as `tokenize`.
    """
    return clip.encode_from_tokens_scheduled(tokenize(clip, text))


class LongCatTextEncode(io.ComfyNode):
    """CLIP, text -> CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatTextEncode",
            display_name="LongCat Text Encode",
            category="model/conditioning/longcat",
            description="Encodes a prompt exactly as LongCat-Video was trained: mojibake and HTML entities repaired, "
            "white space collapsed, at most 512 tokens. (round brackets:1.2) are plain text, not prompt weights.",
            search_aliases=[
                "longcat prompt",
                "text to video",
                "longcat video prompt",
                "umt5 encode",
                "negative prompt longcat",
            ],
            inputs=[
                clip_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the video shows, in English or Chinese; long descriptions work best. Up to 512 "
                    "tokens (about 350 English words), the rest is cut.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the positive or negative input of a sampler or guider.")],
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        """Tokenize and encode."""
        return io.NodeOutput(encoded_prompt(clip, text))
