import pytest
import torch

from longcat_core.text import clean_prompt, fixed_length


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a cat\n\n on   a mat\t", "a cat on a mat"),
        ("salt &amp;amp;amp; pepper", "salt & pepper"),
        ("schÃ¶n", "schön"),
        ("(red:1.3) [blue]", "(red:1.3) [blue]"),
        ("一只猫在海边奔跑", "一只猫在海边奔跑"),
        ("", ""),
    ],
)
def test_cleaning(text: str, cleaned: str) -> None:
    assert clean_prompt(text) == cleaned


@pytest.mark.parametrize("length", [1, 511, 512, 513, 700])
def test_always_512_tokens_and_a_mask_of_the_real_ones(length: int) -> None:
    context = torch.ones(2, length, 8)
    context[:, length // 2 + 1 :] = 0
    padded, mask = fixed_length(context)
    assert padded.shape == (2, 512, 8)
    assert mask.shape == (2, 512)
    assert mask.sum(dim=1).tolist() == [min(length // 2 + 1, 512)] * 2
    assert torch.equal(padded[:, : min(length, 512)], context[:, :512])


def test_padding_between_two_encodings_is_cut_first() -> None:
    context = torch.zeros(1, 1024, 2)
    context[0, :3], context[0, 512:515] = 1.0, 2.0
    padded, mask = fixed_length(context)
    assert padded[0, :6, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert mask.sum() == 6


def test_cutting_real_tokens_is_said(caplog: pytest.LogCaptureFixture) -> None:
    fixed_length(torch.ones(1, 600, 2))
    assert "reads 512 text tokens; the last of 600 are cut" in caplog.text
