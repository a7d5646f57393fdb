"""Ways to make sampling cheaper without changing the model."""

from typing import Any

import comfy.patcher_extension
from comfy_api.latest import io

from ..longcat_core import kv_cache
from ..longcat_core.model_base import LongCatVideoModel

KEY = "longcat_kv_cache"
OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


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
                    options=list(kv_cache.POLICIES),
                    default="auto",
                    tooltip="Where it is kept. gpu: on the graphics card; cpu: in main memory, copied block by block "
                    "ahead of use, two blocks' worth on the card; auto: gpu unless it cannot fit. In bf16 at 480 x 832 "
                    "an image needs 1.2 GB, 13 frames 4.9 GB (computed).",
                ),
            ],
            outputs=[io.Model.Output(tooltip="A copy of the model, with the cache.")],
        )

    @classmethod
    def execute(cls, model: Any, policy: kv_cache.Policy) -> io.NodeOutput:
        """Install the cache on a clone, in place of one that is there."""
        if not isinstance(model.model, LongCatVideoModel):
            raise ValueError(
                f"LongCat KV Cache works with LongCat-Video only; the connected model is {type(model.model).__name__}."
            )
        model = model.clone()
        model.remove_wrappers_with_key(OUTER_SAMPLE, KEY)
        model.add_wrapper_with_key(OUTER_SAMPLE, KEY, kv_cache.CachedSampling(policy))
        return io.NodeOutput(model)
