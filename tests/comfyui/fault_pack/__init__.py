"""Nodes for tests only."""

from pathlib import Path

import comfy.patcher_extension
import folder_paths
import torch


class OutOfMemoryOnce:
    """MODEL -> MODEL whose third call of the network raises what PyTorch raises without memory."""

    CATEGORY = "tests"
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: ANN206, N802 - ComfyUI's V1 node interface
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model):  # noqa: ANN001, ANN201 - ComfyUI's V1 node interface
        calls = []

        def fail(executor, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202 - takes whatever the network takes
            calls.append(None)
            if len(calls) == 3:
                raise torch.OutOfMemoryError("Allocation on device")
            return executor(*args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "fault", fail)
        return (model,)


class TextOfFile:
    """Text of a file in the folder of inputs, as nodes for random prompts: the same inputs give another text."""

    CATEGORY = "tests"
    FUNCTION = "read"
    RETURN_TYPES = ("*",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: ANN206, N802 - ComfyUI's V1 node interface
        return {"required": {"name": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, name):  # noqa: ANN001, ANN206, N802 - ComfyUI's V1 node interface
        return cls().read(name)[0]

    def read(self, name):  # noqa: ANN001, ANN201 - ComfyUI's V1 node interface
        return (Path(folder_paths.get_input_directory(), name).read_text(),)


NODE_CLASS_MAPPINGS = {"TestOutOfMemoryOnce": OutOfMemoryOnce, "TestTextOfFile": TextOfFile}
