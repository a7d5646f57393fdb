import pytest
import torch

from longcat_core.text import clean_prompt, fixed_length


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a cat\n\n on   a mat\t", "a cat on a mat"),
        ("salt &amp;amp; pepper", "salt & pepper"),
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
