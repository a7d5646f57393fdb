"""Which chunks of keys the chunks of queries see."""

import itertools

import pytest
import torch

from longcat_core.frames.geometry import TokenGrid
from longcat_core.sparse.chunks import Chunking, check_sparsity, means, num_kept, select

GRIDS = [(4, 8, 8), (3, 5, 7), (1, 4, 9), (6, 2, 3)]
CHUNKS = [(4, 4, 4), (2, 3, 4), (1, 1, 1), (4, 4, 8)]


def numbered(grid: tuple[int, int, int]) -> torch.Tensor:
    """Tokens `[1, 1, N, 3]` that hold their own place in the grid, counted from 1."""
    places = torch.tensor([*itertools.product(*(range(1, size + 1) for size in grid))])
    return places.float().view(1, 1, -1, 3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_hold_neighbours(grid: tuple[int, int, int], chunk: tuple[int, int, int]) -> None:
    chunking = Chunking(TokenGrid(*grid), TokenGrid(*chunk))
    tokens = numbered(grid)
    chunks, real = chunking.split(tokens), chunking.real(torch.device("cpu"))
    assert chunks.shape[2:4] == real.shape == (chunking.counts.num_tokens, chunking.chunk.num_tokens)
    assert int(real.sum()) == chunking.grid.num_tokens
    for corner, held, is_real in zip(
        itertools.product(*(range(count) for count in chunking.counts)), chunks[0, 0], real, strict=True
    ):
        inside = [
            [a * c + 1 + d for a, c, d in zip(corner, chunk, place, strict=True)]
            for place in itertools.product(*(range(size) for size in chunk))
        ]
        expected = [p for p in inside if all(x <= size for x, size in zip(p, grid, strict=True))]
        assert held[is_real].tolist() == expected
        assert not held[~is_real].any()
    assert torch.equal(chunking.join(chunks), tokens)
    assert torch.equal(means(chunks, real).isfinite(), torch.ones_like(means(chunks, real), dtype=torch.bool))


def test_padding_counts_in_no_mean() -> None:
    chunking = Chunking(TokenGrid(3, 3, 3), TokenGrid(2, 2, 2))
    chunks = chunking.split(numbered((3, 3, 3)))
    found = means(chunks, chunking.real(torch.device("cpu")))[0, 0]
    assert found[0].tolist() == [1.5, 1.5, 1.5]
    assert found[1].tolist() == [1.5, 1.5, 3.0]
    assert found[-1].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("sparsity", "chunks", "kept"),
    [(0.9375, 2640, 165), (0.9375, 16, 1), (0.9375, 15, 1), (0.9375, 4, 1), (0.0, 7, 7), (0.75, 16, 4), (None, 9, 1)],
)
def test_how_many_are_kept(sparsity: float | None, chunks: int, kept: int) -> None:
    """165 of the 2,640 chunks of a refined video of 93 frames; at least one."""
    assert num_kept(sparsity, chunks) == kept


def test_the_best_are_kept() -> None:
    keys = torch.randn(2, 3, 10, 8)
    queries = torch.randn(2, 3, 5, 8)
    scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys)
    found = select(queries, keys, 0.7)
    assert found.counts is None
    for kept, row in zip(found.indices.flatten(0, 2), scores.flatten(0, 2), strict=True):
        assert kept.tolist() == sorted(range(10), key=lambda i: -row[i])[:3]


@pytest.mark.parametrize("sparsity", [None, 0.7])
def test_a_share_of_the_attention_is_kept(sparsity: float | None) -> None:
    torch.manual_seed(0)
    keys, queries = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 5, 8)
    weights = (torch.einsum("bhqd,bhkd->bhqk", queries, keys) / 8**0.5).softmax(-1)
    found = select(queries, keys, sparsity, 0.8)
    counts = []
    for kept, count, row in zip(
        found.indices.flatten(0, 2), found.counts.flatten(), weights.flatten(0, 2), strict=True
    ):
        order = sorted(range(10), key=lambda i: -row[i])
        within = sum(sum(row[i] for i in order[:n]) <= 0.8 for n in range(1, 11))
        assert count == max(within, 3 if sparsity else 1)
        assert kept[:count].tolist() == order[:count]
        counts.append(int(count))
    assert len(set(counts)) > 1
    assert found.indices.shape[-1] == max(counts)


@pytest.mark.parametrize(
    ("sparsity", "cdf", "said"),
    [
        (1.0, None, "sparsity is 1.0; .* from 0 .none. to below 1"),
        (-0.1, None, "sparsity is -0.1"),
        (None, 1.0, "cdf is 1.0; .* between 0 and 1"),
        (0.5, 0.0, "cdf is 0.0"),
        (None, None, "needs sparsity .0.9375 in the reference., cdf, or both"),
    ],
)
def test_numbers_out_of_range_are_refused(sparsity: float | None, cdf: float | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_sparsity(sparsity, cdf)
