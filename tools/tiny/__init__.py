"""A tiny LongCat-Video folder with random weights. ComfyUI and the pack must be importable; it needs diffusers."""
