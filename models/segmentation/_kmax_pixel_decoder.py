"""The convolutional half of kMaX-DeepLab: backbones and the pixel decoder with axial attention.

Attributes have the names of the authors' PyTorch checkpoints. Every batch norm has eps 1e-3, and every
bilinear resize aligns corners where the width is odd, as the TensorFlow original does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXt
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

HEADS = 8
# Channels of a block's output, in widths of its stage.
EXPANSION = 4
# Furthest that two positions of an axis may lie apart: tables of positions have an entry for each distance.
_SPAN = 255

BatchNorm2d = partial(nn.BatchNorm2d, eps=1e-3)
BatchNorm1d = partial(nn.BatchNorm1d, eps=1e-3)


class ConvBN(nn.Module):
    """A convolution over pixels (`dims` 2) or queries (1), batch norm and GELU, the last two on request."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dims: int = 2,
        groups: int = 1,
        bias: bool = False,
        norm: bool = True,
        act: bool = False,
    ) -> None:
        super().__init__()
        conv, batch_norm = ((nn.Conv1d, BatchNorm1d), (nn.Conv2d, BatchNorm2d))[dims - 1]
        self.conv = conv(
            channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias
        )
        self.norm = batch_norm(out_channels) if norm else nn.Identity()
        self.act = nn.GELU() if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))


class ResNetFeatures(nn.Module):
    """torchvision's ResNet with strides in the 3x3 convolutions: [B, 3, H, W] to five maps.

    The stem's output (stride 4) and those of the four stages (strides 4, 8, 16, 32).
    """

    def __init__(self, depths: Sequence[int]) -> None:
        super().__init__()
        self.body = ResNet(Bottleneck, list(depths), norm_layer=BatchNorm2d)
        self.body.fc = nn.Identity()
        self.channels = (64, 256, 512, 1024, 2048)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        body = self.body
        features = [body.maxpool(body.relu(body.bn1(body.conv1(image))))]
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            features.append(stage(features[-1]))
        return features


class ConvNeXtFeatures(nn.Module):
    """timm's ConvNeXt, padded as TensorFlow pads: [B, 3, H, W] to five maps of strides 4, 4, 8, 16 and 32.

    A map has 1 + (side - 1) // stride positions a side. What is padded before the later downsampling
    goes through its norm, so that it becomes that norm's bias.
    """

    def __init__(
        self, depths: Sequence[int], dims: Sequence[int], layer_scale: float = 1e-6
    ) -> None:
        super().__init__()
        body = ConvNeXt(
            depths=tuple(depths), dims=tuple(dims), ls_init_value=layer_scale, num_classes=0
        )
        self.stem, self.stages = body.stem, body.stages
        self.channels = (dims[0], *dims)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features = [self.stem(F.pad(image, (1, 2, 1, 2)))]
        for index, stage in enumerate(self.stages):
            x = features[-1]
            features.append(stage(F.pad(x, (0, 1, 0, 1)) if index else x))
        return features


class RelativePositions(nn.Module):
    """A vector for each distance of a key from a query: [n, n, depth] for an axis of n positions."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self._embeddings = nn.Embedding(2 * _SPAN - 1, depth)
        nn.init.trunc_normal_(self._embeddings.weight, std=1.0)

    def forward(self, length: int) -> torch.Tensor:
        place = torch.arange(length, device=self._embeddings.weight.device)
        return self._embeddings(place[None, :] - place[:, None] + _SPAN - 1)


class AxisAttention(nn.Module):
    """Attention along one axis, in which positions speak in queries, keys and values: [N, C, L] to [N, V, L]."""

    def __init__(self, channels: int, key_depth: int, value_depth: int) -> None:
        super().__init__()
        self._depths = (key_depth, key_depth, value_depth)
        self.qkv_transform = ConvBN(channels, sum(self._depths), dims=1, norm=False)
        self._query_rpe = RelativePositions(key_depth // HEADS)
        self._key_rpe = RelativePositions(key_depth // HEADS)
        self._value_rpe = RelativePositions(value_depth // HEADS)
        self._batch_norm_qkv = BatchNorm1d(sum(self._depths))
        self._batch_norm_similarity = BatchNorm2d(3 * HEADS)
        self._batch_norm_retrieved_output = BatchNorm1d(2 * value_depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self._batch_norm_qkv(self.qkv_transform(x))
        q, k, v = (part.unflatten(1, (HEADS, -1)) for part in qkv.split(self._depths, 1))
        length = x.shape[-1]
        similarity = torch.cat(
            (
                torch.einsum("nhdl,nhdm->nhlm", q, k),
                torch.einsum("nhdl,lmd->nhlm", q, self._query_rpe(length)),
                torch.einsum("nhdm,lmd->nhlm", k, self._key_rpe(length)),
            ),
            1,
        )
        # The three kinds of similarity are weighed against each other by their norms: there is no 1/sqrt(d).
        logits = self._batch_norm_similarity(similarity).unflatten(1, (3, HEADS)).sum(1)
        weights = logits.float().softmax(-1).to(v.dtype)
        content = torch.einsum("nhlm,nhdm->nhdl", weights, v)
        position = torch.einsum("nhlm,lmd->nhdl", weights, self._value_rpe(length).to(v.dtype))
        retrieved = torch.cat((content.flatten(1, 2), position.flatten(1, 2)), 1)
        return self._batch_norm_retrieved_output(retrieved).unflatten(1, (2, -1)).sum(1)


class AxialAttention(nn.Module):
    """Attention along columns, then along rows: [B, C, H, W] to [B, V, H, W], for sides of at most 255."""

    def __init__(self, channels: int, key_depth: int, value_depth: int) -> None:
        super().__init__()
        self._height_axis = AxisAttention(channels, key_depth, value_depth)
        self._width_axis = AxisAttention(value_depth, key_depth, value_depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        columns = self._height_axis(x.permute(0, 3, 1, 2).flatten(0, 1))  # B*W, V, H
        rows = columns.unflatten(0, (batch, width)).permute(0, 3, 2, 1)  # B, H, V, W
        rows = self._width_axis(rows.flatten(0, 1))  # B*H, V, W
        return rows.unflatten(0, (batch, height)).transpose(1, 2)


class Block(nn.Module):
    """A pre-activated bottleneck whose middle is axial attention or a 3x3 convolution; gives 4 x `width` channels."""

    def __init__(self, channels: int, width: int, *, axial: bool) -> None:
        super().__init__()
        inner, out_channels = 2 * width if axial else width, EXPANSION * width
        self._conv1_bn_act = ConvBN(channels, inner, act=True)
        if axial:
            self._attention = AxialAttention(inner, width, inner)
        else:
            self._conv2_bn_act = ConvBN(inner, inner, 3, act=True)
        self._conv3_bn = ConvBN(inner, out_channels)
        nn.init.zeros_(self._conv3_bn.norm.weight)
        self._shortcut = (
            ConvBN(channels, out_channels) if channels != out_channels else nn.Identity()
        )
        self._axial = axial

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(x)
        inner = self._conv1_bn_act(x)
        inner = F.gelu(self._attention(inner)) if self._axial else self._conv2_bn_act(inner)
        return self._shortcut(x) + self._conv3_bn(inner)


class Stage(nn.Module):
    """Blocks of one resolution and width."""

    def __init__(self, channels: int, width: int, depth: int, *, axial: bool) -> None:
        super().__init__()
        self._blocks = nn.Sequential(
            *(
                Block(EXPANSION * width if index else channels, width, axial=axial)
                for index in range(depth)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._blocks(x)


class ResizedFuse(nn.Module):
    """The sum of a coarse map, resized, and a fine one, both projected where their channels are not `channels`."""

    def __init__(self, low: int, high: int, channels: int) -> None:
        super().__init__()
        self._conv_bn_low = _activated(low, channels)
        self._conv_bn_high = _activated(high, channels)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        # The width that decides is the coarse map's.
        return resize(self._conv_bn_low(low), high.shape[2:]) + self._conv_bn_high(high)


class _ActivatedConvBN(ConvBN):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.gelu(x))


def _activated(channels: int, out_channels: int) -> nn.Module:
    return _ActivatedConvBN(channels, out_channels) if channels != out_channels else nn.Identity()


class PixelDecoder(nn.Module):
    """From a backbone's maps, finest first, to one map for each stage, coarsest first, of 4 x its width channels.

    Takes the last `len(depths)` maps. `axial` tells of each stage whether its blocks attend.
    """

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        widths: Sequence[int],
        axial: Sequence[bool],
    ) -> None:
        super().__init__()
        inputs = list(channels)[::-1][: len(depths)]
        self._in_norms = nn.ModuleList(LayerNorm2d(number, eps=1e-6) for number in inputs)
        self._stages = nn.ModuleList(
            Stage(width if index else inputs[0], width, depth, axial=attends)
            for index, (width, depth, attends) in enumerate(zip(widths, depths, axial, strict=True))
        )
        self._resized_fuses = nn.ModuleList(
            ResizedFuse(EXPANSION * widths[index - 1], inputs[index], widths[index])
            for index in range(1, len(inputs))
        )

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = []
        for index, stage in enumerate(self._stages):
            x = self._in_norms[index](features[-1 - index])
            if index:
                x = self._resized_fuses[index - 1](maps[-1], x)
            maps.append(stage(x))
        return maps


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize maps [B, C, h, w] bilinearly to `size`; corners are aligned where w is odd."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=x.shape[-1] % 2 == 1)
