"""The network, under the path that other code relies on."""

from .network.dit import LongCatVideoTransformer

__all__ = ["LongCatVideoTransformer"]
