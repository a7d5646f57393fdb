"""Make ComfyUI and the pack importable in this process."""

import os
import sys
from pathlib import Path

from host.process import PACK


def use_pack() -> None:
    """Make `longcat_core` importable. The pack's folder goes last, or its `nodes` would hide ComfyUI's."""
    if str(PACK) not in sys.path:
        sys.path.append(str(PACK))


def use_comfyui(pytorch_attention: bool = False) -> None:
    """Make the ComfyUI in COMFYUI_PATH importable, on the CPU, and the pack.

    ComfyUI's options count only until its modules are imported, so this comes before any import of them.

    Args:
        pytorch_attention: use torch's scaled dot-product attention; on a CPU the default is sub-quadratic attention.

    Raises:
        ValueError: COMFYUI_PATH does not name a ComfyUI.
    """
    root = os.environ.get("COMFYUI_PATH", "")
    if not root or not (Path(root) / "comfy").is_dir():
        raise ValueError(f"COMFYUI_PATH is '{root}': set it to the folder of ComfyUI that main.py is in.")
    sys.path.insert(0, root)
    use_pack()
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention |= pytorch_attention
