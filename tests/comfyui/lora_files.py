"""LoRA files of every convention, made of an official one without help of the code that reads them."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from longcat_core.weights import layouts

StateDict = dict[str, Tensor]
OFFICIAL_PREFIX, OFFICIAL_DOT = "lora___lorahyphen___", "___lorahyphen___"


class Low(NamedTuple):
    """What an official file holds for a layer: one first matrix, a second one for each part, and the factor."""

    layer: str
    down: Tensor
    ups: list[Tensor]
    factor: float

    @property
    def up(self) -> Tensor:
        """All parts as one matrix, `[out, parts * rank]`."""
        return torch.block_diag(*self.ups)


def layers(official: Mapping[str, Tensor]) -> Iterator[Low]:
    """The layers of an official file."""
    for name, tensor in official.items():
        module, found, _ = name.partition(".alpha_scale")
        if found:
            ups = [official[key] for key in sorted(official) if key.startswith(f"{module}.lora_up.")]
            layer = module.removeprefix(OFFICIAL_PREFIX).replace(OFFICIAL_DOT, ".")
            yield Low(layer, official[f"{module}.lora_down.weight"], ups, float(tensor))


def parts(low: Low) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, first and second matrix of each matrix of the split network; other layers are one."""
    block, fused = next(((low.layer.removesuffix(f), f) for f in layouts.PARTS if low.layer.endswith(f)), ("", ""))
    if not fused:
        yield low.layer, low.down, low.up
    else:
        rank = low.down.shape[0] // len(low.ups)
        for part, down, up in zip(layouts.PARTS[fused], low.down.split(rank), low.ups, strict=True):
            yield f"{block}{part}", down, up


def in_layout(layer: str, layout: str) -> str:
    """A layer of the network as a layout names it."""
    return layouts.from_network(f"{layer}.weight", layout).removesuffix(".weight")


def kohya(official: Mapping[str, Tensor]) -> StateDict:
    """Wan-like names, q, k and v apart, alpha over rank; adaLN as a whole difference."""
    lora: StateDict = {}
    for low in layers(official):
        for layer, down, up in parts(low):
            name = f"diffusion_model.{in_layout(layer, layouts.WAN)}"
            if "adaLN" in layer:
                lora[f"{name}.diff"] = low.factor * up.float() @ down.float()
            else:
                lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up.contiguous()}
                lora[f"{name}.alpha"] = torch.tensor(low.factor * down.shape[0])
    return lora


def fastvideo(official: Mapping[str, Tensor]) -> StateDict:
    """FastVideo's names, without prefix and without `.weight`."""
    lora: StateDict = {}
    for low in layers(official):
        for layer, down, up in parts(low):
            name = in_layout(layer, layouts.FASTVIDEO)
            lora |= {f"{name}.lora_A": down, f"{name}.lora_B": up.contiguous()}
            lora[f"{name}.lora_alpha"] = torch.tensor(low.factor * down.shape[0])
    return lora


def peft(official: Mapping[str, Tensor], prefix: str = "transformer.", adapter: str = "") -> StateDict:
    """Fused official names as PEFT writes them; the factor is in the second matrix, as without alpha it is 1."""
    lora: StateDict = {}
    for low in layers(official):
        name = f"{prefix}{low.layer}"
        lora |= {f"{name}.lora_A{adapter}.weight": low.down, f"{name}.lora_B{adapter}.weight": low.factor * low.up}
    return lora


def underscored(official: Mapping[str, Tensor]) -> StateDict:
    """Fused official names with underscores, as trainers write them that follow kohya."""
    lora: StateDict = {}
    for low in layers(official):
        name = f"lora_unet_{low.layer.replace('.', '_')}"
        lora |= {f"{name}.lora_down.weight": low.down, f"{name}.lora_up.weight": low.up}
        lora[f"{name}.alpha"] = torch.tensor(low.factor * low.down.shape[0])
    return lora


def dotted(official: Mapping[str, Tensor]) -> StateDict:
    """The official convention with ordinary dots."""
    return {name.removeprefix(OFFICIAL_PREFIX).replace(OFFICIAL_DOT, "."): t for name, t in official.items()}


def prefixed(lora: Mapping[str, Tensor], prefix: str = "diffusion_model.") -> StateDict:
    """ComfyUI's prefix in front of another convention: names that core half knows."""
    return {f"{prefix}{name}": tensor for name, tensor in lora.items()}


CONVENTIONS: dict[str, Callable[[Mapping[str, Tensor]], StateDict]] = {
    "official": lambda official: dict(official),
    "kohya, split": kohya,
    "FastVideo": fastvideo,
    "PEFT": peft,
    "PEFT, raw": lambda official: peft(official, "base_model.model.", ".default"),
    "PEFT, ComfyUI's names": lambda official: peft(official, "diffusion_model."),
    "kohya, underscores": underscored,
    "official, dotted": lambda official: prefixed(dotted(official)),
    "FastVideo, prefixed": lambda official: prefixed(fastvideo(official)),
}
