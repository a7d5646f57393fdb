"""The nodes, and what ComfyUI calls to get them."""

from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from ..longcat_core.comfyui import family
from .acceleration import LongCatBlockSparseAttention, LongCatKVCache
from .latents import LongCatContinueLatent, LongCatLatent
from .loaders import MODELS_FOLDER, LongCatLoader
from .refine import LongCatRefineLatent
from .refine_video import LongCatRefineVideo
from .sampling import LongCatCFGZero, LongCatSampler, LongCatSigmas
from .storyboard import LongCatStoryboard
from .text import LongCatTextEncode
from .video import LongCatDecode, LongCatJoin

NODES: list[type[io.ComfyNode]] = [
    LongCatLoader,
    LongCatTextEncode,
    LongCatLatent,
    LongCatContinueLatent,
    LongCatRefineLatent,
    LongCatSigmas,
    LongCatCFGZero,
    LongCatKVCache,
    LongCatBlockSparseAttention,
    LongCatSampler,
    LongCatDecode,
    LongCatJoin,
    LongCatStoryboard,
    LongCatRefineVideo,
]


class LongCatExtension(ComfyExtension):
    """The pack."""

    async def on_load(self) -> None:
        """Make ComfyUI's own loaders and samplers know the model, and give its folders a place."""
        family.register()
        folder_paths.add_model_folder_path(MODELS_FOLDER, str(Path(folder_paths.models_dir) / MODELS_FOLDER))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return NODES


async def comfy_entrypoint() -> LongCatExtension:
    """What ComfyUI calls when it loads the pack."""
    return LongCatExtension()
