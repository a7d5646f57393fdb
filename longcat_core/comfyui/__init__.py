"""How ComfyUI learns about the model, loads, patches and samples it."""
