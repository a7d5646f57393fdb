"""UMT5's tokenizer from a folder, in either of the two forms that transformers writes.

Older transformers saved the sentencepiece model, which ComfyUI reads itself; since version 5 only `tokenizer.json` is
saved, which transformers reads. The released folder has both, and the first is used.
"""

from pathlib import Path
from typing import Any

import comfy.sd1_clip
import sentencepiece
import torch
import transformers

from ..text import TEXT_TOKENS
from ..weights.advice import DOWNLOAD_AGAIN
from ..weights.folder import read_json

SENTENCEPIECE = "spiece.model"
TOKENIZER_JSON = "tokenizer.json"
FOLDER_KEY = "longcat_tokenizer_folder"


class JsonTokenizer(comfy.sd1_clip.SDTokenizer):
    """ComfyUI's tokenizer interface around `tokenizer.json`, padding to 512 with token 0 as core's UMT5 does."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] = {}):  # noqa: B006 - as core's
        super().__init__(
            tokenizer_data[FOLDER_KEY],
            tokenizer_class=transformers.AutoTokenizer,
            embedding_directory=embedding_directory,
            embedding_key="umt5xxl",
            embedding_size=4096,
            has_start_token=False,
            pad_with_end=False,
            pad_to_max_length=False,
            pad_token=0,
            min_length=TEXT_TOKENS,
            max_length=99999999,
            tokenizer_data=tokenizer_data,
        )


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """What `comfy.sd.CLIP` needs as `tokenizer_data` to tokenize with the files in `folder`.

    Raises:
        ValueError: neither form is there, or it cannot be read.
    """
    if (folder / SENTENCEPIECE).is_file():
        model = (folder / SENTENCEPIECE).read_bytes()
        check_sentencepiece(folder / SENTENCEPIECE, model)
        return {"spiece_model": torch.frombuffer(bytearray(model), dtype=torch.uint8)}
    if (folder / TOKENIZER_JSON).is_file():
        if not {"model", "added_tokens"} <= read_json(folder / TOKENIZER_JSON).keys():
            raise ValueError(f"{folder / TOKENIZER_JSON} does not describe a tokenizer. {DOWNLOAD_AGAIN}")
        return {"clip_umt5xxl_tokenizer_class": JsonTokenizer, FOLDER_KEY: str(folder)}
    raise ValueError(
        f"{folder} has neither {SENTENCEPIECE} nor {TOKENIZER_JSON}; without a tokenizer no prompt can be read. "
        f"Download the tokenizer/ folder of the model's repository next to text_encoder/."
    )


def check_sentencepiece(path: Path, model: bytes) -> None:
    """Raise ValueError if `model`, the content of `path`, is not a sentencepiece model."""
    try:
        num_pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size() if model else 0
    except RuntimeError as error:
        raise ValueError(f"{path} is not a sentencepiece model. {DOWNLOAD_AGAIN}") from error
    if not num_pieces:
        raise ValueError(f"{path} is not a sentencepiece model: it is empty. {DOWNLOAD_AGAIN}")
