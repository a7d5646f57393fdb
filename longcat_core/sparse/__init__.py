"""Block-sparse attention: which chunks are kept, and the backends that attend to them."""
