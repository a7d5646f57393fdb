"""The diffusion transformer and what it needs while it runs."""
