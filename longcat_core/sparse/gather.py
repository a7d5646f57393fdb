"""Block-sparse attention by copying the kept keys of some chunks of queries together; runs everywhere."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .chunks import Kept

GATHER_BYTES = 2**30
CACHE_BYTES = 2**20  # of one CPU core


def attend_gathered(q: Tensor, k: Tensor, v: Tensor, kept: Kept, real_k: Tensor | None) -> Tensor:
    """Attention of query chunks to their kept key chunks, which are copied together, some query chunks at a time.

    Args:
        q: `[B, heads, chunks of queries, tokens, D]`.
        k, v: `[B, heads, chunks of keys, tokens, D]`.
        kept: what each chunk of queries sees.
        real_k: tokens that are not padding, as `Chunking.real`; None: all.

    Returns:
        As `q`.
    """
    first = torch.arange(q.shape[0] * q.shape[1], device=q.device) * k.shape[2]
    indices = (kept.indices.flatten(0, 1) + first.view(-1, 1, 1)).flatten(0, 1)
    counts = None if kept.counts is None else kept.counts.flatten()
    rows, k_rows, v_rows = (x.flatten(0, 2) for x in (q, k, v))

    row_bytes = 2 * indices.shape[1] * k.shape[3] * k.shape[4] * k.element_size()
    step = max(1, gather_bytes(q.device) // row_bytes)
    out = torch.empty_like(rows)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        chosen = indices[part].flatten()
        q_part = rows[part].unsqueeze(1)
        k_part, v_part = (x.index_select(0, chosen).view(len(q_part), 1, -1, x.shape[2]) for x in (k_rows, v_rows))
        mask = seen_tokens(indices[part] % k.shape[2], None if counts is None else counts[part], real_k, k.shape[3])
        out[part] = scaled_dot_product_attention(q_part, k_part, v_part, attn_mask=mask).squeeze(1)
    return out.view_as(q)


def gather_bytes(device: torch.device) -> int:
    """How much to copy at once: on a CPU what stays in the cache of its cores."""
    return CACHE_BYTES * torch.get_num_threads() if device.type == "cpu" else GATHER_BYTES


def seen_tokens(indices: Tensor, counts: Tensor | None, real_k: Tensor | None, chunk_tokens: int) -> Tensor | None:
    """Which tokens of kept chunks count: bool `[rows, 1, 1, n * tokens]`; None: all.

    Args:
        indices: the kept chunks `[rows, n]`.
        counts: how many of them are kept `[rows]`; None: all.
        real_k: tokens that are not padding `[chunks, tokens]`; None: all.
        chunk_tokens: tokens of a chunk.
    """
    seen = None if real_k is None else real_k[indices]
    if counts is not None:
        counted = (torch.arange(indices.shape[1], device=indices.device) < counts.unsqueeze(1)).unsqueeze(2)
        seen = counted.expand(-1, -1, chunk_tokens) if seen is None else seen & counted
    return None if seen is None else seen.flatten(1, 2).unsqueeze(1).unsqueeze(1)
