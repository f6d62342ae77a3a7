"""One level of the dual-tree complex wavelet transform and its inverse, for the scattering vision transformer.

The filters are those called `near_sym_b` in https://github.com/fbcotter/pytorch_wavelets (MIT). They are
buffers, as a checkpoint holds its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

ROWS, COLUMNS = 3, 2  # axes of [B, C, H, W] along which a filter runs

# Filters of the first level, up to and with the centre tap; the rest mirrors them.
_H0 = (-0.0017578125, 0.0, 0.022265625, -0.046875, -0.0482421875, 0.296875, 0.55546875)
_H1 = (
    *(-7.06264e-05, 0.0, 0.0013419015, -0.0018833705, -0.007156808),
    *(0.0238560268, 0.0556431362, -0.051688058, -0.2997576032, 0.5594308036),
)
_G0 = (
    *(7.06264e-05, 0.0, -0.0013419015, -0.0018833705, 0.007156808),
    *(0.0238560268, -0.0556431362, -0.051688058, 0.2997576032, 0.5594308036),
)
_G1 = (-0.0017578125, 0.0, 0.022265625, 0.046875, -0.0482421875, -0.296875, 0.55546875)


def symmetric(half: Sequence[float]) -> torch.Tensor:
    """Return the taps [1, 1, K, 1] of a filter given up to its centre."""
    return torch.tensor([*half, *half[-2::-1]]).view(1, 1, -1, 1)


def correlate(x: torch.Tensor, taps: torch.Tensor, axis: int) -> torch.Tensor:
    """Run the filter `taps` [1, 1, K, 1] along an axis of the maps [B, C, H, W], mirrored at their edges."""
    size, margin = x.shape[axis], taps.numel() // 2
    # The mirror stands outside the edge pixel, which is thus repeated.
    place = torch.arange(-margin, size + margin, device=x.device) % (2 * size)
    padded = x.index_select(axis, torch.where(place < size, place, 2 * size - 1 - place))
    kernel = taps if axis == COLUMNS else taps.transpose(2, 3)
    return functional.conv2d(padded.flatten(0, 1)[:, None], kernel).view_as(x)


class DualTree(nn.Module):
    """One level of the dual-tree complex wavelet transform."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h0o", symmetric(_H0))
        self.register_buffer("h1o", symmetric(_H1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take [B, C, H, W] (even sides) to the low band [B, C, H, W] and the high [B, C, 6, H/2, W/2, 2].

        The last axis holds real and imaginary parts, the third the six orientations.
        """
        low, high = correlate(x, self.h0o, ROWS), correlate(x, self.h1o, ROWS)
        lh1, lh2 = _to_complex(correlate(low, self.h1o, COLUMNS))
        hl1, hl2 = _to_complex(correlate(high, self.h0o, COLUMNS))
        hh1, hh2 = _to_complex(correlate(high, self.h1o, COLUMNS))
        bands = torch.stack((lh1, hh1, hl1, hl2, hh2, lh2), dim=2)
        return correlate(low, self.h0o, COLUMNS), bands


class InverseDualTree(nn.Module):
    """The inverse of `DualTree`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("g0o", symmetric(_G0))
        self.register_buffer("g1o", symmetric(_G1))

    def forward(self, low: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
        lh1, hh1, hl1, hl2, hh2, lh2 = bands.unbind(2)
        high = self._column(_to_quads(hl1, hl2), _to_quads(hh1, hh2))
        low = self._column(low, _to_quads(lh1, lh2))
        return correlate(high, self.g1o, ROWS) + correlate(low, self.g0o, ROWS)

    def _column(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return correlate(high, self.g1o, COLUMNS) + correlate(low, self.g0o, COLUMNS)


def _to_complex(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn squares of four neighbours, [B, C, H, W], into two complex numbers, [B, C, H/2, W/2, 2] each."""
    x = x / math.sqrt(2)
    a, b = x[..., ::2, ::2], x[..., ::2, 1::2]
    c, d = x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.stack((a - d, b + c), dim=-1), torch.stack((a + d, b - c), dim=-1)


def _to_quads(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    (re1, im1), (re2, im2) = first.unbind(-1), second.unbind(-1)
    top = torch.stack((re1 + re2, im1 + im2), dim=-1)
    bottom = torch.stack((im1 - im2, re2 - re1), dim=-1)
    square = torch.stack((top, bottom), dim=-3)  # B, C, H/2, 2, W/2, 2
    return square.flatten(4, 5).flatten(2, 3) / math.sqrt(2)
