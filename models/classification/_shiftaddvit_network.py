"""The layers of ShiftAddViT and the two pyramids (PVT and PVT v2) that are built from them.

Rounded values pass gradients on as if they had not been rounded, so that the networks can be trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

STAGES = 4
# Of the authors' shift layers: range of exponents, resolution and bound of their fixed-point numbers.
EXPONENTS = (-14, 0)
RESOLUTION = 2.0**-16
BOUND = 2.0**15
# What the authors' code adds up experts with keeps outputs above this: the logarithm of float64's epsilon.
FLOOR = math.log(2.0**-52)

Size = tuple[int, int]
Kind = Literal["linear", "shift", "experts"]


class ShiftLinear(nn.Module):
    """A linear layer whose weights are 0 or a signed power of two: products become shifts of bits.

    A weight is 2^round(`shift`) with the sign of round(`sign`); input and bias are fixed-point numbers.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        weight = torch.randn(out_features, in_features) * in_features**-0.5
        self.shift = nn.Parameter(weight.abs().log2())
        self.sign = nn.Parameter(weight.sign())
        self.bias = nn.Parameter(torch.zeros(out_features))

    def powers(self) -> torch.Tensor:
        """Return the weights, [out_features, in_features]."""
        exponent = self.shift.clamp(*EXPONENTS)
        sign = _replaced(self.sign, self.sign.round().sign())
        return torch.exp2(_replaced(exponent, exponent.round())) * sign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(_fixed_point(x), self.powers(), _fixed_point(self.bias))

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Return the linear layer with these weights, which differs by the rounding of its input only."""
        out_features, in_features = self.shift.shape
        linear = nn.Linear(in_features, out_features, device=self.shift.device)
        linear.weight.copy_(self.powers())
        linear.bias.copy_(_fixed_point(self.bias))
        return linear


class Experts(nn.Module):
    """Two experts, one that multiplies and one that shifts; every token gets the one that scores higher.

    Both compute all tokens, so that nothing depends on how many each of them is given.
    """

    def __init__(self, dim: int, multiplying: nn.Module, shifting: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, 2)
        self.experts = nn.ModuleList((multiplying, shifting))

    def forward(self, x: torch.Tensor, *size: Size) -> torch.Tensor:
        first, second = (expert(x, *size) for expert in self.experts)
        chosen = self.gate(x).argmax(-1, keepdim=True)
        out = torch.where(chosen == 0, first, second)
        # The authors add the experts up as log(exp(output) + epsilon); this is the same without overflow.
        return torch.logaddexp(out, out.new_full((), FLOOR))


def _experts(in_features: int, out_features: int) -> Experts:
    return Experts(
        in_features,
        nn.Linear(in_features, out_features),
        ShiftLinear(in_features, out_features),
    )


LAYERS: dict[Kind, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "shift": ShiftLinear,
    "experts": _experts,
}


class KernelHash(nn.Module):
    """Binary codes of vectors by their nearness to anchors, [B, heads, N, d] to 0 or 1, [B, heads, N, bits].

    The authors fit anchors, means and hashing matrix to the first batch of their training, and they come with a
    checkpoint. Without one they are random: near vectors still share most bits.
    """

    def __init__(self, heads: int, dim: int, bits: int, anchors: int) -> None:
        super().__init__()
        self.register_buffer("anchors", F.normalize(torch.randn(1, heads, anchors, dim), dim=-1))
        self.register_buffer("means", torch.full((1, heads, 1, anchors), math.exp(-0.5)))
        self.register_buffer("matrix", torch.randn(heads, bits, anchors))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A bit hangs on the sign of a sum of small differences.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            distance = (
                x.square().sum(-1, keepdim=True)
                + self.anchors.square().sum(-1).unsqueeze(-2)
                - 2 * x @ self.anchors.transpose(-2, -1)
            )  # B, heads, N, anchors
            width = distance.mean((-2, -1), keepdim=True)
            near = torch.exp(-distance / (2 * width)) - self.means
            score = near @ self.matrix.transpose(-2, -1)  # B, heads, N, bits
            return _replaced(score.clamp(0, 1), (score > 0).to(score.dtype))


class AddAttention(nn.Module):
    """Linear attention over binary codes, [B, N, dim] to the same.

    Queries and keys are one code of zeros and ones, so that both products are sums of selected values.
    """

    def __init__(self, dim: int, heads: int, kind: Kind, bits: int, anchors: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qk = LAYERS[kind](dim, dim)
        self.to_v = LAYERS[kind](dim, dim)
        self.hash = KernelHash(heads, dim // heads, bits, anchors)
        # Over nine successive tokens of a row, one kernel a head.
        self.dconv = nn.Conv2d(heads, heads, (9, 1), padding=(4, 0), groups=heads, bias=False)
        self.proj = LAYERS[kind](dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B, heads, N, d
            for part in (self.to_qk(x), self.to_v(x))
        )
        codes = self.hash(F.normalize(query.float(), dim=-1))
        context = codes.transpose(-2, -1) @ value  # B, heads, bits, d
        mixed = 0.5 * value + (codes @ context) / math.pi
        mixed = F.normalize(mixed, dim=-1) + self.dconv(value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class SoftmaxAttention(nn.Module):
    """Ordinary attention, [B, N, dim] to the same."""

    def __init__(self, dim: int, heads: int, kind: Kind) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        # The authors' mixtures end before the last stage, their plain shift layers do not.
        self.proj = LAYERS["shift" if kind == "shift" else "linear"](dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with GELU between them, and before it a depthwise convolution over the map if asked for."""

    def __init__(
        self, dim: int, hidden: int, layer: Callable[[int, int], nn.Module], depthwise: bool
    ) -> None:
        super().__init__()
        self.fc1 = layer(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if depthwise else None
        self.fc2 = layer(hidden, dim)

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        x = self.fc1(x)
        if self.dwconv is not None:
            x = self.dwconv(x.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to what it reads, [B, N, dim] to the same."""

    def __init__(self, dim: int, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x), size)


class PatchEmbedding(nn.Module):
    """A strided convolution and LayerNorm, [B, in_dim, H, W] to [B, N, dim] and the map's size."""

    def __init__(self, in_dim: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        padding = kernel // 2 if kernel > stride else 0
        self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Size]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class _Pyramid(nn.Module):
    """What both pyramids share: `patch_embed1..4`, `block1..4` and `head`.

    `dims`, `heads`, `mlp_ratios`, `depths`: one number per stage. `projections`, `mlps`: kind of the linear
    layers in attention and in the MLPs. `bits`, `anchors`: of the binary codes in the first three stages.
    """

    overlapping: bool

    def __init__(
        self,
        dims: Sequence[int],
        heads: Sequence[int],
        mlp_ratios: Sequence[int],
        depths: Sequence[int],
        num_classes: int,
        projections: Kind = "linear",
        mlps: Kind = "linear",
        bits: int = 16,
        anchors: int = 25,
    ) -> None:
        super().__init__()
        previous = 3
        for stage, dim, head_count, ratio, depth in zip(
            range(1, STAGES + 1), dims, heads, mlp_ratios, depths, strict=True
        ):
            stride = 4 if stage == 1 else 2
            kernel = 2 * stride - 1 if self.overlapping else stride
            self.add_module(f"patch_embed{stage}", PatchEmbedding(previous, dim, kernel, stride))
            blocks = nn.ModuleList()
            for _ in range(depth):
                attention = (
                    AddAttention(dim, head_count, projections, bits, anchors)
                    if stage < STAGES
                    else SoftmaxAttention(dim, head_count, projections)
                )
                blocks.append(Block(dim, attention, self._mlp(dim, ratio * dim, mlps)))
            self.add_module(f"block{stage}", blocks)
            previous = dim
        self.head = nn.Linear(dims[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _mlp(self, dim: int, hidden: int, kind: Kind) -> nn.Module:
        raise NotImplementedError


class PyramidV2(_Pyramid):
    """PVT v2: overlapping patches, positions from depthwise convolutions. Maps [B, 3, H, W] to logits."""

    overlapping = True

    def __init__(self, dims: Sequence[int], **parts: Any) -> None:
        super().__init__(dims, **parts)
        for stage, dim in enumerate(dims, start=1):
            self.add_module(f"norm{stage}", nn.LayerNorm(dim, eps=1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in range(1, STAGES + 1):
            x, size = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"block{stage}"):
                x = block(x, size)
            x = getattr(self, f"norm{stage}")(x)  # B, N, C
            if stage < STAGES:
                x = x.transpose(1, 2).unflatten(2, size)
        return self.head(x.mean(1))

    def _mlp(self, dim: int, hidden: int, kind: Kind) -> nn.Module:
        return Mlp(dim, hidden, LAYERS[kind], depthwise=True)


class PyramidV1(_Pyramid):
    """PVT: separate patches, position tables, a class token in the last stage. Maps [B, 3, H, W] to logits.

    `image_size`: side of the pictures that the tables are made for; for others they are interpolated.
    """

    overlapping = False

    def __init__(self, dims: Sequence[int], image_size: int, **parts: Any) -> None:
        super().__init__(dims, **parts)
        self._sides = [image_size // 2 ** (stage + 1) for stage in range(1, STAGES + 1)]
        for stage, (side, dim) in enumerate(zip(self._sides, dims, strict=True), start=1):
            table = torch.zeros(1, side**2 + (stage == STAGES), dim)
            self.register_parameter(f"pos_embed{stage}", nn.Parameter(table))
            nn.init.trunc_normal_(getattr(self, f"pos_embed{stage}"), std=0.02)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[-1]))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in range(1, STAGES + 1):
            x, size = getattr(self, f"patch_embed{stage}")(x)
            if stage == STAGES:
                x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1)
            x = x + self._positions(stage, size)
            for block in getattr(self, f"block{stage}"):
                x = block(x, size)
            if stage < STAGES:
                x = x.transpose(1, 2).unflatten(2, size)
        return self.head(self.norm(x)[:, 0])

    def _positions(self, stage: int, size: Size) -> torch.Tensor:
        """Return the table of `stage` for a map of `size`, [1, N, C]; the class token's own row comes first."""
        table: torch.Tensor = getattr(self, f"pos_embed{stage}")
        side = self._sides[stage - 1]
        if size == (side, side):
            return table
        first, grid = table.split((table.shape[1] - side**2, side**2), 1)
        grid = grid.transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, size=size, mode="bilinear").flatten(2).transpose(1, 2)
        return torch.cat((first, grid), 1)

    def _mlp(self, dim: int, hidden: int, kind: Kind) -> nn.Module:
        if kind == "experts":  # one choice for the whole MLP
            layers: tuple[Kind, Kind] = ("linear", "shift")
            return Experts(dim, *(Mlp(dim, hidden, LAYERS[k], depthwise=False) for k in layers))
        return Mlp(dim, hidden, LAYERS[kind], depthwise=False)


def folded(network: nn.Module) -> nn.Module:
    """Return a copy whose shift layers are linear layers, the fastest form where the hardware multiplies."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ShiftLinear):
                setattr(module, name, child.folded())
    return network


def _fixed_point(x: torch.Tensor) -> torch.Tensor:
    exact = (torch.floor(x / RESOLUTION) * RESOLUTION).clamp(-BOUND, BOUND - 1)
    return _replaced(x, exact)


def _replaced(smooth: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return `exact` with the gradient of `smooth`."""
    return exact.detach() + (smooth - smooth.detach()) if smooth.requires_grad else exact
