"""SiT, the self-supervised vision transformer, as it is pre-trained (https://arxiv.org/abs/2104.03602).

Random blocks of a picture, half of its area together, are blanked; each patch is restored from its own token, which has
seen what is left around it. The embedding made from the encoder is `models/embedding/sit.py`, which has the paper's story.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.embedding._sit_network import RestoringHead, TwoTokenSiT
from models.embedding.sit import BY_HAND, LICENCE, PAPER, SIZES, SiTArchitecture
from models.layers.dino_vit import DinoViT
from models.layers.restorer import Restorer, parameters
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Task

# A block's sides are at most this share of the picture's.
_LONGEST_BLOCK = 0.3
SHARE = 0.5


def blocks(size: tuple[int, int], share: float, stream: torch.Generator) -> torch.Tensor:
    """Choose random blocks of pixels until they cover `share` of a picture of `size`: bool [H, W]."""
    hidden = torch.zeros(size, dtype=torch.bool)
    while float(hidden.float().mean()) < share:
        (top, bottom), (left, right) = (_span(side, stream) for side in size)
        hidden[top:bottom, left:right] = True
    return hidden


def _span(side: int, stream: torch.Generator) -> tuple[int, int]:
    longest = max(1, int(_LONGEST_BLOCK * side))
    length = int(torch.randint(1, longest + 1, (), generator=stream))
    start = int(torch.randint(0, side - length + 1, (), generator=stream))
    return start, start + length


class SiTRestorer(nn.Module):
    """The network of 2022 without its contrastive head: pictures [B, 3, H, W] to restored ones."""

    def __init__(self, backbone: DinoViT) -> None:
        super().__init__()
        self.backbone = backbone
        self.head_recons = RestoringHead(backbone.pos_embed.shape[-1], backbone.patch_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head_recons(self.backbone.represent(image)[1])

    def hide(self, size: tuple[int, int], share: float, stream: torch.Generator) -> torch.Tensor:
        return blocks(size, share, stream)

    def restore(self, image: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self(image.masked_fill(hidden[:, None], 0.0))


class TwoTokenRestorer(TwoTokenSiT):
    """The whole network of 2021, of which the restored picture is served."""

    def hide(self, size: tuple[int, int], share: float, stream: torch.Generator) -> torch.Tensor:
        return blocks(size, share, stream)

    def restore(self, image: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        _, _, restored = self(image.masked_fill(hidden[:, None], 0.0))
        return restored


def _variants() -> dict[str, Variant]:
    """Return the variants of the embedding, with the head that restores."""
    variants = [
        Variant(
            "demo",
            config=SiTArchitecture.variants["demo"].config,
            image=imagenet.squashed(64),
            parameters=parameters(SHARE),
            demo=True,
        )
    ]
    variants += [
        Variant(
            variant.name,
            config=variant.config,
            image=variant.image,
            flops=variant.flops,
            parameters=parameters(SHARE),
            notes=(BY_HAND,),
        )
        for variant in SiTArchitecture.variants.values()
        if not variant.demo
    ]
    return {variant.name: variant for variant in variants}


@register
class SiTReconstruction(Architecture):
    """SiT as the restorer of pictures with blanked blocks."""

    slug = "sit-reconstruction"
    title = "SiT (pre-training)"
    task = Task.RECONSTRUCTION
    paper = PAPER
    origin = "own"
    licence = LICENCE
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network of 2021 or 2022 (`form`) with what restores, of the embedding's sizes."""
        sizes = {name: config[name] for name in SIZES}
        if config["form"] == 2021:
            return TwoTokenRestorer(**sizes, head="pretraining")
        sizes["table_size"] = sizes.pop("image_size")
        return SiTRestorer(DinoViT(**sizes))

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open `teacher` or `student`, whichever can restore, or `model`; leave out the contrastive head of 2022.

        Weights of the losses of 2021 are left out as well.
        """
        for key in ("teacher", "student"):
            inner = checkpoint.get(key)
            if isinstance(inner, Mapping) and any("head_recons." in name for name in inner):
                checkpoint = inner
                break
        state = unwrapped(checkpoint)
        unused = ("rot_w", "contrastive_w", "recons_w") if config["form"] == 2021 else ("head.",)
        return {name: value for name, value in state.items() if not name.startswith(unused)}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Restorer(network, card, device)
