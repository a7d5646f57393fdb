"""Block-sparse attention, under the path that other code relies on."""

from .sparse.attention import BACKENDS, BLOCK_SPARSE, Backend, BlockSparse, block_sparse_attention

__all__ = ["BACKENDS", "BLOCK_SPARSE", "Backend", "BlockSparse", "block_sparse_attention"]
