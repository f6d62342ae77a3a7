"""A convolution, alone or with batch norm and ReLU, under the names of mmcv: `conv`, `bn`."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class ConvModule(nn.Sequential):
    """A k x k convolution that keeps the size of its map [B, C, H, W].

    `norm`: without bias, followed by batch norm and ReLU; else with bias and nothing else.
    """

    def __init__(self, inside: int, outside: int, kernel: int, *, norm: bool = False) -> None:
        conv = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=not norm)
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
        if norm:
            parts |= OrderedDict(bn=nn.BatchNorm2d(outside), activate=nn.ReLU(inplace=True))
        super().__init__(parts)
