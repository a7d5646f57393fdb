"""A node for tests only: makes a model fail as if its device had run out of memory."""

import comfy.patcher_extension
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


NODE_CLASS_MAPPINGS = {"TestOutOfMemoryOnce": OutOfMemoryOnce}
