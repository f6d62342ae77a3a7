"""The network of Hyena N-D: a vision transformer that mixes patches by gated convolutions over the whole map.

Paper: https://arxiv.org/abs/2309.13600; `hyena_nd.py` says what is particular to it. Modules have the
names of the authors' state dict.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import nn

Method = Literal["hyena2d", "hyena2dattn", "attnhyena2d", "onebyone", "attention"]
Direction = Literal["standard", "seq", "parallel", "4dir", "4dirp"]
Window = Literal["standard", "learn", "symettric", "no"]  # the authors' spelling

_EPS = 1e-6
# Frequency of the waves beside the position itself; the decay reaches 1% at these shares of the map's side.
_FREQUENCY = 1e-4
_SLOW, _FAST, _TARGET = 1.5, 0.3, 0.01


def long_convolution(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve each channel of x [B, C, L, L] with its kernel [C, L, L], which reaches up and left.

    The sum is divided by 2L; x times `bias` [C] is added. Always float32.
    """
    side = x.shape[-1]
    size = (2 * side, 2 * side)  # no wrapping around
    spectrum = torch.fft.rfft2(x.float(), s=size) * torch.fft.rfft2(kernel.float(), s=size)
    convolved = torch.fft.irfft2(spectrum, s=size)[..., :side, :side]
    return convolved / (2 * side) + x * bias[:, None, None]


class Sine(nn.Module):
    """sin(frequency * x) with a learned frequency per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.ones(1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.freq * x)


class Positions(nn.Module):
    """Positions along one axis: `t` [1, L, 1] from 0 to 1, `z` [1, L, 3] with a wave beside it."""

    def __init__(self, side: int) -> None:
        super().__init__()
        t = torch.linspace(0, 1, side)[None, :, None]
        phase = -_FREQUENCY * 2 * math.pi * torch.arange(side)[None, :, None] / side
        self.z = nn.Parameter(torch.cat((t, phase.cos(), phase.sin()), dim=-1))
        self.register_buffer("t", t)


class Decay(nn.Module):
    """Weights of a kernel by position: for one axis [1, L, C], or for the map [1, L, L, C]."""

    def __init__(self, channels: int, window: Window, *, joint: bool, sqrt: bool = False) -> None:
        super().__init__()
        if window == "symettric" and not joint:
            raise ValueError("a symmetric window needs a joint filter")
        self.window = window
        self.sqrt = sqrt
        rates = torch.linspace(math.log(_TARGET) / _SLOW, math.log(_TARGET) / _FAST, channels)
        self.names = ("Xdeltas", "Ydeltas") if joint and window != "symettric" else ("deltas",)
        for name in self.names if window != "no" else ():
            if window == "standard":
                self.register_buffer(name, rates.clone()[None, None])
            else:
                self.register_parameter(name, nn.Parameter(rates.clone()[None, None]))
        learned = window in ("learn", "symettric")
        self.shift = nn.Parameter(torch.rand(1, 1, channels)) if learned else None

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        if self.window == "no":
            return t.new_ones(())
        rates = [getattr(self, name).abs() for name in self.names]
        if self.window == "symettric":
            steps = torch.arange(t.shape[1], device=t.device)
            decay = torch.exp(-(steps[:, None] + steps)[None, :, :, None] * rates[0])
        elif len(rates) == 2:
            rows, columns = (torch.exp(-t * rate) for rate in rates)
            decay = rows[:, :, None] * columns[:, None]
        else:
            decay = torch.exp(-t * rates[0])
        if self.sqrt:
            decay = decay.sqrt()
        return decay if self.shift is None else decay + self.shift


def _implicit(inputs: int, width: int, channels: int, sine: Sine) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        sine,
        nn.Linear(width, width),
        sine,
        nn.Linear(width, width),
        sine,
        nn.Linear(width, channels, bias=False),
    )


class ImplicitFilter(nn.Module):
    """Kernels [C, L, L] that a network computes from the positions, and a gain per channel, `bias` [C].

    `joint`: one network of both positions; else the product of one of the rows and one of the columns. All
    sines are one module, which the state dict lists under each of its names.
    """

    def __init__(
        self, channels: int, side: int, width: int, window: Window, *, joint: bool, sqrt: bool
    ) -> None:
        super().__init__()
        self.joint = joint
        self.bias = nn.Parameter(torch.randn(channels))
        self.pos_emb = Positions(side)
        sine = Sine(width)
        if joint:
            self.implicit_filter = _implicit(6, width, channels, sine)
            self.modulation = Decay(channels, window, joint=True, sqrt=sqrt)
        else:
            # The order of the shared frequencies' names: the last one read counts.
            self.Yimplicit_filter = _implicit(3, width, channels, sine)
            self.Ymodulation = Decay(channels, window, joint=False)
            self.Ximplicit_filter = _implicit(3, width, channels, sine)
            self.Xmodulation = Decay(channels, window, joint=False)

    def forward(self) -> torch.Tensor:
        z, t = self.pos_emb.z, self.pos_emb.t
        side = z.shape[1]
        if self.joint:
            rows = z[:, :, None].expand(-1, -1, side, -1)
            columns = z[:, None].expand(-1, side, -1, -1)
            kernel = self.implicit_filter(torch.cat((rows, columns), -1)) * self.modulation(t)
        else:
            rows = self.Ximplicit_filter(z) * self.Xmodulation(t)
            columns = self.Yimplicit_filter(z) * self.Ymodulation(t)
            kernel = rows[:, :, None] * columns[:, None]
        return kernel[0].permute(2, 0, 1)  # L, L, C -> C, L, L


# Axes (rows, columns) that each of four directions turns round.
_TURNS = ((), (-2, -1), (-1,), (-2,))


class Hyena2d(nn.Module):
    """The operator over the map of patches: [B, L * L, C] to the same shape.

    `direction`: `standard` looks up and left; `seq` turns the map for the first long convolution; `4dir` and
    `4dirp` run in four directions and mix them per channel or across channels; `parallel` has four short
    filters. `free_kernel`: the kernels are weights.
    """

    def __init__(
        self,
        dim: int,
        side: int,
        *,
        order: int,
        filter_width: int,
        direction: Direction,
        window: Window,
        joint_filter: bool,
        free_kernel: bool,
        sqrt_decay: bool,
    ) -> None:
        super().__init__()
        self.side = side
        self.order = order
        self.direction = direction
        inner, copies = dim * (order + 1), 4 if direction == "parallel" else 1
        self.in_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(copies * dim, dim)
        self.short_filter = nn.Conv2d(inner, copies * inner, 3, padding=1, groups=inner)
        if direction == "4dir":
            self.linear_mix = nn.Linear(4, 1)
        elif direction == "4dirp":
            self.linear_mix = nn.Linear(4 * dim, dim)
        self.filter_fn: ImplicitFilter | None = None
        if free_kernel:
            self.filter = nn.Parameter(torch.randn(order, dim, side, side))
            self.bias = nn.Parameter(torch.randn(order, dim))
        else:
            self.filter_fn = ImplicitFilter(
                dim * (order - 1), side, filter_width, window, joint=joint_filter, sqrt=sqrt_decay
            )

    def kernels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the kernels [order - 1 or more, C, L, L] and the gains of what they take, [.., C]."""
        if self.filter_fn is None:
            return self.filter, self.bias
        return (
            self.filter_fn().unflatten(0, (self.order - 1, -1)),
            self.filter_fn.bias.unflatten(0, (self.order - 1, -1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        grid = self.in_proj(x).transpose(1, 2).unflatten(2, (self.side, self.side))
        grid = self.short_filter(grid)
        if self.direction == "parallel":
            grid = grid.unflatten(1, (4, -1)).flatten(0, 1)  # 4B, (order + 1) C, L, L
        parts = grid.chunk(self.order + 1, dim=1)
        if self.direction in ("4dir", "4dirp"):
            parts = tuple(torch.cat([part.flip(turn) for turn in _TURNS]) for part in parts)
        first, *gates, value = parts
        kernels, gains = self.kernels()
        for number, gate in enumerate(reversed(gates)):
            turned = (-2, -1) if self.direction == "seq" and number == 0 else ()
            value = (value * gate).flip(turned)
            value = long_convolution(value, kernels[number], gains[number]).flip(turned)
        value = value * first
        if self.direction == "parallel":
            value = value.unflatten(0, (batch, 4)).flatten(1, 2)
        elif self.direction in ("4dir", "4dirp"):
            back = [part.flip(turn) for part, turn in zip(value.chunk(4), _TURNS, strict=True)]
            mixed = torch.stack(back, -1).permute(0, 2, 3, 1, 4)  # B, L, L, C, 4
            if self.direction == "4dir":
                value = self.linear_mix(mixed).squeeze(-1)
            else:
                value = self.linear_mix(mixed.flatten(3))
            return self.out_proj(value.reshape(batch, tokens, -1))
        return self.out_proj(value.flatten(2).transpose(1, 2))


class Block(nn.Module):
    """A mixer of patches and two linear layers, each on the normalised input and added to it."""

    def __init__(self, dim: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def mixes_by_hyena(method: Method, block: int, depth: int) -> bool:
    """Return whether block number `block` of `depth` has the operator (else attention)."""
    match method:
        case "hyena2d" | "attention":
            return method == "hyena2d"
        case "hyena2dattn":
            return block <= depth // 2
        case "attnhyena2d":
            return block > depth // 2
        case "onebyone":
            return block % 2 == 0


class HyenaTransformer(nn.Module):
    """The network: square pictures [B, 3, S, S] of the size it was built for to logits [B, classes]."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        num_classes: int,
        method: Method = "hyena2d",
        direction: Direction = "seq",
        window: Window = "standard",
        joint_filter: bool = True,
        free_kernel: bool = False,
        sqrt_decay: bool = False,
        order: int = 2,
        filter_width: int = 64,
    ) -> None:
        super().__init__()
        for value, allowed in ((method, Method), (direction, Direction), (window, Window)):
            if value not in get_args(allowed):
                raise ValueError(f"{value!r} is none of {get_args(allowed)}")
        self.patch_embed = PatchEmbed(image_size, patch_size, embed_dim=dim)
        self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches, dim) * 0.02)
        mixers: list[nn.Module] = []
        for number in range(depth):
            if mixes_by_hyena(method, number, depth):
                straight = direction == "seq" and number % 2 == 1
                mixers.append(
                    Hyena2d(
                        dim,
                        image_size // patch_size,
                        order=order,
                        filter_width=filter_width,
                        direction="standard" if straight else direction,
                        window=window,
                        joint_filter=joint_filter,
                        free_kernel=free_kernel,
                        sqrt_decay=sqrt_decay,
                    )
                )
            else:
                mixers.append(Attention(dim, heads, qkv_bias=True))
        self.blocks = nn.Sequential(*(Block(dim, mixer) for mixer in mixers))
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(image) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])
