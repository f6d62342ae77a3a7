"""ViT-CoMer: Vision Transformer with Convolutional Multi-scale Feature Interaction (https://arxiv.org/abs/2403.07392).

A plain vision transformer beside a small pyramid of convolutions. Four times on the way the two tell each
other what they found, by deformable attention, so that a transformer pre-trained on single pictures gives the
four maps that detection and segmentation need. Where the paper and the authors' code differ, the weights
need the code, and this follows it: the transformer's tokens join the pyramid's middle level before each exchange.

The published detector and the segmentor differ in three arguments: `windows`, `mrfp_ratio` and `each_stage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import Mlp
from torch import nn
from torch.nn import functional as F

from models.layers.deformable_attention import DeformableAttention, Sizes, cell_centres

_PATCH = 16
_LEVELS = 3
_EXTRA = 4

_norm = partial(nn.LayerNorm, eps=1e-6)


class ViTCoMer(nn.Module):
    """Maps pictures [B, 3, H, W], sides multiples of 32, to four maps [B, dim, H / s, W / s], s = 4, 8, 16 and 32.

    `interactions`: first and last block of each stage. `windows`: side of the windows that each block attends in,
    None where it attends everywhere. `mrfp_ratio`: width of the pyramid's own perceptrons over `dim`. `to_vit`,
    `to_pyramid`, `within_pyramid`: what each interaction has. `each_stage`: whether the four maps get the
    transformer's features after each stage, or all those of the last.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        pretrain_size: int = 224,
        mlp_ratio: float = 4.0,
        stem: int = 64,
        points: int = 4,
        deform_heads: int = 6,
        deform_ratio: float = 1.0,
        ffn_ratio: float = 0.25,
        mrfp_ratio: float = 6.0,
        interactions: Sequence[tuple[int, int]] = ((0, 2), (3, 5), (6, 8), (9, 11)),
        windows: Sequence[int | None] | None = None,
        to_vit: Sequence[bool] = (True,) * 4,
        to_pyramid: Sequence[bool] = (True,) * 4,
        within_pyramid: Sequence[bool] = (True,) * 4,
        each_stage: bool = True,
    ) -> None:
        super().__init__()
        self.dims = (dim,) * 4
        self._grid = pretrain_size // _PATCH
        self._each_stage = each_stage
        self._interactions = tuple(interactions)
        self.pos_embed = nn.Parameter(torch.zeros(1, self._grid**2 + 1, dim))
        self.level_embed = nn.Parameter(torch.zeros(_LEVELS, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, _PATCH, stride=_PATCH)})
        self.blocks = nn.ModuleList(
            _Block(dim, heads, mlp_ratio, window) for window in windows or (None,) * depth
        )
        self.spm = _Pyramid(stem, dim)

        def extractor() -> _Extractor:
            return _Extractor(dim, deform_heads, points, deform_ratio, ffn_ratio)

        self.interactions = nn.ModuleList(
            _Interaction(
                mrfp=_MultiReceptiveField(dim, int(dim * mrfp_ratio)) if to_vit[i] else None,
                cti_tov=_ToViT(dim, deform_heads, points, deform_ratio, ffn_ratio)
                if to_vit[i]
                else None,
                cti_toc=_ToPyramid(dim, extractor() if within_pyramid[i] else None, None)
                if to_pyramid[i]
                else None,
                extra=[
                    _ToPyramid(
                        dim, extractor() if within_pyramid[i] else None, int(dim * ffn_ratio)
                    )
                    for _ in range(_EXTRA if i == len(self._interactions) - 1 else 0)
                ],
            )
            for i in range(len(self._interactions))
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        for number in range(1, 5):
            self.add_module(f"norm{number}", nn.BatchNorm2d(dim))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        height, width = image.shape[2] // _PATCH, image.shape[3] // _PATCH
        sizes = [(2 * height, 2 * width), (height, width), (height // 2, width // 2)]
        places = cell_centres(sizes, image.device)
        finest, *maps = self.spm(image)
        tokens = [m.flatten(2).transpose(1, 2) for m in maps]
        c = torch.cat([t + e for t, e in zip(tokens, self.level_embed, strict=True)], 1)
        x = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        x = x + self._positions(height, width)
        stages = []
        for interaction, (first, last) in zip(self.interactions, self._interactions, strict=True):
            x, c = interaction(x, c, self.blocks[first : last + 1], places, sizes)
            stages.append(x.transpose(1, 2).unflatten(2, (height, width)))
        if not self._each_stage:
            stages = stages[-1:] * 4
        c2, c3, c4 = as_maps(c, sizes)
        c1 = self.up(c2) + finest
        joined = [
            c + _scaled(stage, scale)
            for c, stage, scale in zip((c1, c2, c3, c4), stages, (4, 2, 1, 0.5), strict=True)
        ]
        return [self.get_submodule(f"norm{i}")(c) for i, c in enumerate(joined, 1)]

    def _positions(self, height: int, width: int) -> torch.Tensor:
        """Return the table of positions at the size of the tokens' grid: [1, height * width, dim]."""
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self._grid, self._grid))
        table = F.interpolate(table, (height, width), mode="bicubic", align_corners=False)
        return table.flatten(2).transpose(1, 2)


class _Pyramid(nn.Module):
    """Maps pictures to four maps of the transformer's width, strides 4 to 32, by convolutions."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(3, width, 2),
            *_convolution(width, width, 1),
            *_convolution(width, width, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_convolution(width, 2 * width, 2))
        self.conv3 = nn.Sequential(*_convolution(2 * width, 4 * width, 2))
        self.conv4 = nn.Sequential(*_convolution(4 * width, 4 * width, 2))
        for number, inside in enumerate((1, 2, 4, 4), 1):
            self.add_module(f"fc{number}", nn.Conv2d(inside * width, dim, 1))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.stem(image)]
        for convolution in (self.conv2, self.conv3, self.conv4):
            maps.append(convolution(maps[-1]))
        return [self.get_submodule(f"fc{i}")(x) for i, x in enumerate(maps, 1)]


class _Interaction(nn.Module):
    """One exchange: the pyramid looks closer at itself and tells the transformer, whose blocks run and tell the pyramid."""

    def __init__(
        self,
        mrfp: nn.Module | None,
        cti_tov: nn.Module | None,
        cti_toc: nn.Module | None,
        extra: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.mrfp, self.cti_tov, self.cti_toc = mrfp, cti_tov, cti_toc
        self.extra_CTIs = nn.ModuleList(extra) if extra else None

    def forward(
        self,
        x: torch.Tensor,
        c: torch.Tensor,
        blocks: nn.ModuleList,
        places: torch.Tensor,
        sizes: Sizes,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens x [B, N, dim] of the transformer and c [B, 21 N / 4, dim] of the pyramid."""
        if self.mrfp is not None and self.cti_tov is not None:
            c = joined_in_the_middle(self.mrfp(c, sizes), x, sizes)
            x = x + self.cti_tov(c, places, sizes)
        for block in blocks:
            x = block(x, sizes[1])
        for told in (self.cti_toc, *(self.extra_CTIs or ())):
            if told is not None:
                c = told(joined_in_the_middle(c, x, sizes), places, sizes)
        return x, c


class _MultiReceptiveField(nn.Module):
    """A perceptron over the pyramid's tokens; half of its channels see 3x3 neighbours, half of them 5x5."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _TwoReceptiveFields(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, c: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(c), sizes)))


class _TwoReceptiveFields(nn.Module):
    """Depthwise convolutions of two sizes, each over half of the channels, with weights of their own for each level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        for level in range(_LEVELS):
            for offset, kernel in ((1, 3), (2, 5)):
                conv = nn.Conv2d(half, half, kernel, padding=kernel // 2, groups=half)
                self.add_module(f"dwconv{2 * level + offset}", conv)
            self.add_module(f"bn{level + 1}", nn.BatchNorm2d(width))

    def forward(self, c: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        levels = []
        for level, x in enumerate(as_maps(c, sizes)):
            parts = [
                self.get_submodule(f"dwconv{2 * level + 1 + i}")(part)
                for i, part in enumerate(x.chunk(2, 1))
            ]
            x = self.get_submodule(f"bn{level + 1}")(torch.cat(parts, 1))
            levels.append(F.gelu(x).flatten(2).transpose(1, 2))
        return torch.cat(levels, 1)


class _ToViT(nn.Module):
    """What the pyramid tells the transformer: all levels of what it sees, at the size of the tokens' grid."""

    def __init__(
        self, dim: int, heads: int, points: int, deform_ratio: float, ffn_ratio: float
    ) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = _norm(dim), _norm(dim)
        self.attn = DeformableAttention(dim, _LEVELS, heads, points, deform_ratio)
        self.ffn = _ConvolutionalMlp(dim, int(dim * ffn_ratio))
        self.ffn_norm = _norm(dim)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, c: torch.Tensor, places: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        seen = self.attn(self.query_norm(c), places, self.feat_norm(c), sizes)
        seen = seen + self.ffn(self.ffn_norm(seen), sizes)
        fine, middle, coarse = as_maps(seen, sizes)
        told = _scaled(fine, 0.5) + middle + _scaled(coarse, 2)
        return self.gamma * told.flatten(2).transpose(1, 2)


class _ToPyramid(nn.Module):
    """What becomes of the pyramid once it knows the transformer's tokens. `hidden`: width of a perceptron before that."""

    def __init__(self, dim: int, cfinter: nn.Module | None, hidden: int | None) -> None:
        super().__init__()
        self.cfinter = cfinter
        self.query_norm, self.feat_norm = _norm(dim), _norm(dim)
        self.ffn = None if hidden is None else _ConvolutionalMlp(dim, hidden)
        self.ffn_norm = None if hidden is None else _norm(dim)

    def forward(self, c: torch.Tensor, places: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        if self.ffn is not None and self.ffn_norm is not None:
            c = c + self.ffn(self.ffn_norm(c), sizes)
        if self.cfinter is not None:
            # The normalised tokens, not those that came, are what is added to.
            c = self.cfinter(self.query_norm(c), places, self.feat_norm(c), sizes)
        return c


class _Extractor(nn.Module):
    """Deformable attention within the pyramid, then a perceptron, both added to what comes in."""

    def __init__(
        self, dim: int, heads: int, points: int, deform_ratio: float, ffn_ratio: float
    ) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = _norm(dim), _norm(dim)
        self.attn = DeformableAttention(dim, _LEVELS, heads, points, deform_ratio)
        self.ffn = _ConvolutionalMlp(dim, int(dim * ffn_ratio))
        self.ffn_norm = _norm(dim)

    def forward(
        self, query: torch.Tensor, places: torch.Tensor, features: torch.Tensor, sizes: Sizes
    ) -> torch.Tensor:
        query = query + self.attn(self.query_norm(query), places, self.feat_norm(features), sizes)
        return query + self.ffn(self.ffn_norm(query), sizes)


class _ConvolutionalMlp(nn.Module):
    """A perceptron with one 3x3 depthwise convolution, the same for all levels, before its activation."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.ModuleDict(
            {"dwconv": nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)}
        )
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, c: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        levels = [self.dwconv["dwconv"](x) for x in as_maps(self.fc1(c), sizes)]
        return self.fc2(F.gelu(torch.cat([x.flatten(2).transpose(1, 2) for x in levels], 1)))


class _Block(nn.Module):
    """A transformer's block with a gain per channel on each of its halves."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, window: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(dim), _norm(dim)
        self.attn = _Attention(dim, heads, window)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma1 = nn.Parameter(torch.ones(dim))
        self.gamma2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x), size)
        return x + self.gamma2 * self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Attention among all tokens, or among those of a square window of side `window`.

    A grid that windows do not divide is filled up with tokens whose query, key and value are zero; they are attended
    like the others.
    """

    def __init__(self, dim: int, heads: int, window: int | None) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.heads, self.window = heads, window

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        qkv = self.qkv(x)
        seen = self._attended(qkv) if self.window is None else self._in_windows(qkv, size)
        return self.proj(seen)

    def _attended(self, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _in_windows(self, qkv: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        side = self.window
        assert side is not None
        grid = qkv.unflatten(1, size)
        grid = F.pad(grid, (0, 0, 0, -size[1] % side, 0, -size[0] % side))
        rows, columns = grid.shape[1] // side, grid.shape[2] // side
        windows = grid.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        seen = self._attended(windows.flatten(0, 2).flatten(1, 2))  # B * windows, side^2, dim
        seen = seen.unflatten(0, (-1, rows, columns)).unflatten(3, (side, side)).transpose(2, 3)
        seen = seen.flatten(3, 4).flatten(1, 2)
        return seen[:, : size[0], : size[1]].flatten(1, 2)


def as_maps(c: torch.Tensor, sizes: Sizes) -> list[torch.Tensor]:
    """Return the tokens [B, N, C] of maps of `sizes` (height, width) as maps [B, C, height, width]."""
    parts = c.split([height * width for height, width in sizes], 1)
    return [p.transpose(1, 2).unflatten(2, size) for p, size in zip(parts, sizes, strict=True)]


def joined_in_the_middle(c: torch.Tensor, x: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    """Add the transformer's tokens x to the middle level of the pyramid's tokens c."""
    fine, middle, coarse = c.split([height * width for height, width in sizes], 1)
    return torch.cat((fine, middle + x, coarse), 1)


def _convolution(inside: int, outside: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]


def _scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
