"""Weights into single files: the plan of files, writing, comparing with the source. The pack must be importable."""
