"""Ways to make sampling cheaper without changing the model."""

from typing import Any

import comfy.patcher_extension
from comfy_api.latest import io

from ..longcat_core.comfyui import cached_sampling
from ..longcat_core.comfyui.model_base import LongCatVideoModel
from ..longcat_core.frames.geometry import TokenGrid
from ..longcat_core.sparse.attention import (
    BACKENDS,
    BLOCK_SPARSE,
    DEFAULT_CHUNK,
    DEFAULT_SPARSITY,
    Backend,
    BlockSparse,
)
from .checks import checked

KEY = "longcat_kv_cache"
OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


def check_is_longcat(model: Any, node: str) -> None:
    """Raise ValueError if a MODEL is another one."""
    if not isinstance(model.model, LongCatVideoModel):
        raise ValueError(f"{node} works with LongCat-Video only; the connected model is {type(model.model).__name__}.")


class LongCatKVCache(io.ComfyNode):
    """MODEL -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatKVCache",
            display_name="LongCat KV Cache",
            category="model/patch",
            description="Image-to-video and continuation: computes what the given frames contribute once per run, not "
            "at every step. Exact; without given frames it does nothing. LongCat CFG-Zero* then scales by the "
            "generated frames only, as the reference does, so guided videos differ slightly from those without it.",
            search_aliases=["kv cache longcat", "faster continuation", "speed up image to video", "condition cache"],
            inputs=[
                io.Model.Input("model", tooltip="LongCat-Video."),
                io.Combo.Input(
                    "policy",
                    options=list(cached_sampling.POLICIES),
                    default="auto",
                    tooltip="Where it is kept. gpu: on the graphics card; cpu: in main memory, copied block by block "
                    "ahead of use, two blocks' worth on the card; auto: gpu unless it cannot fit. In bf16 at 480 x 832 "
                    "an image needs 1.2 GB, 13 frames 4.9 GB (computed).",
                ),
            ],
            outputs=[io.Model.Output(tooltip="A copy of the model, with the cache.")],
        )

    @classmethod
    def execute(cls, model: Any, policy: cached_sampling.Policy) -> io.NodeOutput:
        """Install the cache on a clone, in place of one that is there."""
        check_is_longcat(model, "LongCat KV Cache")
        model = model.clone()
        model.remove_wrappers_with_key(OUTER_SAMPLE, KEY)
        model.add_wrapper_with_key(OUTER_SAMPLE, KEY, cached_sampling.CachedSampling(policy))
        return io.NodeOutput(model)


def chunk_input(name: str, default: int, tooltip: str) -> io.Int.Input:
    """A size of the chunks."""
    return io.Int.Input(name, default=default, min=1, max=64, optional=True, advanced=True, tooltip=tooltip)


@checked(ranges=("sparsity", "cdf", "chunk_frames", "chunk_height", "chunk_width"))
class LongCatBlockSparseAttention(io.ComfyNode):
    """MODEL -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LongCatBlockSparseAttention",
            display_name="LongCat Block-Sparse Attention",
            category="model/patch",
            description="Makes the attention of large videos cheaper: every chunk of 4 x 4 x 4 tokens sees only those "
            "chunks that matter most to it, a sixteenth as released. An approximation that the refinement LoRA was "
            "trained with; without that LoRA it costs quality.",
            search_aliases=["block sparse attention", "bsa longcat", "sparse attention", "faster refine", "720p speed"],
            inputs=[
                io.Model.Input("model", tooltip="LongCat-Video, with the refinement LoRA."),
                io.Float.Input(
                    "sparsity",
                    default=DEFAULT_SPARSITY,
                    min=0.0,
                    max=0.999,
                    step=0.0005,
                    tooltip="Share of the keys that is left out: 0.9375 as released, 0 is ordinary attention. One "
                    "chunk is always kept.",
                ),
                io.Combo.Input(
                    "backend",
                    options=list(BACKENDS),
                    default="auto",
                    optional=True,
                    tooltip="flex: PyTorch's flex_attention, compiled for the graphics card at the first use. gather: "
                    "runs everywhere. auto: flex where it works, else gather; the log says which.",
                ),
                io.Float.Input(
                    "cdf",
                    default=0.0,
                    min=0.0,
                    max=0.999,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Above 0: keep more chunks where attention is spread out, until together they have this "
                    "share of it (0..1), and never fewer than sparsity keeps. 0 as released.",
                ),
                chunk_input("chunk_frames", DEFAULT_CHUNK.frames, "Latent frames of a chunk; 4 as released."),
                chunk_input("chunk_height", DEFAULT_CHUNK.height, "Rows of a chunk in tokens (16 pixels); 4."),
                chunk_input("chunk_width", DEFAULT_CHUNK.width, "Columns of a chunk in tokens (16 pixels); 4."),
            ],
            outputs=[io.Model.Output(tooltip="A copy of the model, with this attention.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        sparsity: float,
        backend: Backend = "auto",
        cdf: float = 0.0,
        chunk_frames: int = DEFAULT_CHUNK.frames,
        chunk_height: int = DEFAULT_CHUNK.height,
        chunk_width: int = DEFAULT_CHUNK.width,
    ) -> io.NodeOutput:
        """Put the settings where the network reads them, on a clone."""
        check_is_longcat(model, "LongCat Block-Sparse Attention")
        chunk = TokenGrid(chunk_frames, chunk_height, chunk_width)
        model = model.clone()
        model.model_options["transformer_options"][BLOCK_SPARSE] = BlockSparse(sparsity, cdf or None, chunk, backend)
        return io.NodeOutput(model)
