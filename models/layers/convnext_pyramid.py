"""ConvNeXt without its classifier: the maps of its four stages, for detection and segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXt
from torch import nn

from models.architecture import StateDict
from models.classification.convnext import official_to_timm


class ConvNeXtPyramid(nn.Module):
    """Maps pictures [B, 3, H, W] to maps [B, dims[i], H / 2^(i + 2), W / 2^(i + 2)], each normalised over channels.

    The normalised maps are not what the next stage gets. Names are timm's, and `norm0` to `norm3`.
    """

    def __init__(
        self, depths: Sequence[int], dims: Sequence[int], layer_scale: float | None = 1.0
    ) -> None:
        super().__init__()
        body = ConvNeXt(
            num_classes=0, depths=tuple(depths), dims=tuple(dims), ls_init_value=layer_scale
        )
        self.stem, self.stages = body.stem, body.stages
        self.dims = tuple(dims)
        for number, dim in enumerate(dims):
            self.add_module(f"norm{number}", LayerNorm2d(dim, eps=1e-6))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(image)
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            maps.append(self.get_submodule(f"norm{number}")(x))
        return maps


def backbone_to_timm(state: StateDict) -> StateDict:
    """Map the authors' names under `backbone.` to timm's; other names, and timm's own, come through unchanged."""
    prefix = "backbone."
    return {
        prefix + official_to_timm(name.removeprefix(prefix)) if name.startswith(prefix) else name: t
        for name, t in state.items()
    }
