"""A tokenizer as the released one is, trained on a few sentences."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
import transformers

VOCAB_SIZE = 512
CORPUS = (
    "A golden retriever runs along a sandy beach at sunset, waves rolling in behind it.",
    "Close-up of a barista pouring milk into a cup of coffee, steam rising slowly in the morning light.",
    "The camera slowly pans across a snowy mountain range under a clear blue sky.",
    "A woman in a red dress walks through a crowded market and looks at the fruit stalls.",
    "Time-lapse of clouds moving over a city skyline, from day to night.",
    "An old man sits on a wooden bench in the park and feeds the pigeons.",
    "A drone shot of a river winding through a dense green forest in the fog.",
    "Two children play football in the rain on a muddy field, laughing and shouting.",
    "A red car drives down a wet street at night, neon lights reflecting on the road.",
    "A white cat jumps from the sofa to the window and watches the birds outside.",
    "A chef slices vegetables in a bright modern kitchen, then turns to the camera and smiles.",
    "The spaceship lands on a desert planet while dust rises around it; cinematic lighting, 4K.",
    "A small blue square moves from the left to the right on a black background.",
    "A large red circle moves from the top to the bottom on a white background.",
    "Bright tones, overexposed, static, blurred details, subtitles, worst quality, low quality, ugly, deformed.",
    "\u4e00\u53ea\u732b\u5728\u6d77\u6ee9\u4e0a\u5954\u8dd1\u3002",  # A cat runs on the beach.
    "\u955c\u5934\u7f13\u7f13\u626b\u8fc7\u96ea\u5c71\u3002",  # The camera slowly pans across snowy mountains.
)
PRINTABLE_ASCII = "".join(map(chr, range(0x21, 0x7F)))
WHITE_SPACE = "\t\n\v\f\r\u0085\u00a0\u2028\u2029\u3000"


@contextlib.contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Work in a folder, and go back."""
    previous = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(previous)


def write_tokenizer(folder: Path, corpus: Iterable[str], vocab_size: int, words: Iterable[str] = ()) -> None:
    """Train a sentencepiece model on sentences; write it as such and as transformers' tokenizer.

    As in the released tokenizer there are byte pieces for characters outside the vocabulary, pad is 0 and eos 1.
    `vocab_size` is the most there can be; few sentences give fewer pieces. Each of `words` becomes one.
    """
    folder.mkdir(parents=True)
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch, working_directory(Path(scratch)):  # the model keeps the file's path
        rules = Path("white_space.tsv")
        rules.write_text("".join(f"{ord(char):X}\t20\n" for char in WHITE_SPACE), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            user_defined_symbols=[f"\u2581{word}" for word in words],
            required_chars=PRINTABLE_ASCII,
            normalization_rule_tsv=str(rules),
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    (folder / "spiece.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    transformers.T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(folder)
