"""What generators after StyleGAN2 (Karras et al. 2020) share: equalised layers, and upsampling by a filter.

https://arxiv.org/abs/1912.04958.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, scaled so that it keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class EqualizedLinear(nn.Module):
    """Linear layer whose weights are stored at unit variance and scaled when used.

    `lr_multiplier` shrinks weights and bias, and so the speed at which they learn.
    """

    def __init__(
        self,
        inner: int,
        outer: int,
        *,
        bias: float = 0.0,
        lr_multiplier: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outer, inner) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outer,), float(bias)))
        self.scale = lr_multiplier / math.sqrt(inner)
        self.lr_multiplier = lr_multiplier
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight * self.scale, self.bias * self.lr_multiplier)
        return leaky(x) if self.activated else x


def fir_kernel(gain: float = 1.0) -> Tensor:
    """Return the 4x4 binomial low-pass filter; its entries sum to `gain`."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = taps[:, None] * taps
    return kernel * (gain / kernel.sum())


def upsampled(x: Tensor, kernel: Tensor) -> Tensor:
    """Return [B, C, 2H, 2W] of [B, C, H, W]: zeros between the pixels, then a convolution with the 4x4 `kernel`."""
    channels = x.shape[1]
    # A transposed convolution is just that; it pads by 3 and more on each side, of which 1 goes before and 1 after.
    weight = kernel.to(x.dtype).expand(channels, 1, 4, 4)
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=channels)
