"""kMaX-DeepLab: queries are the centres of clusters of pixels, found by rounds of k-means (section 3.2 of the paper).

Attributes have the names of the authors' PyTorch checkpoints (`_predcitor` is theirs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from models.segmentation._kmax_pixel_decoder import (
    EXPANSION,
    HEADS,
    BatchNorm1d,
    BatchNorm2d,
    ConvBN,
    PixelDecoder,
)

# How probable "no object" is made by a bias that no checkpoint holds.
_VOID_PRIOR = 0.9


class Predictor(nn.Module):
    """Class and mask of every query: logits [B, Q, classes + 1], the last one "no object", and [B, Q, H, W]."""

    def __init__(self, channels: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self._pixel_space_head_conv0bnact = ConvBN(channels, channels, 5, groups=channels, act=True)
        self._pixel_space_head_conv1bnact = ConvBN(channels, dim, act=True)
        self._pixel_space_head_last_convbn = ConvBN(dim, dim // 2, bias=True)
        self._transformer_mask_head = ConvBN(dim, dim // 2, dims=1)
        self._transformer_class_head = ConvBN(dim, num_classes + 1, dims=1, bias=True, norm=False)
        self._pixel_space_mask_batch_norm = BatchNorm2d(1)
        nn.init.constant_(self._pixel_space_mask_batch_norm.weight, 0.1)
        self._void_bias = math.log(num_classes * _VOID_PRIOR / (1 - _VOID_PRIOR))

    def forward(
        self, mask_queries: torch.Tensor, class_queries: torch.Tensor, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.classes(class_queries), self.masks(mask_queries, pixels)

    def classes(self, queries: torch.Tensor) -> torch.Tensor:
        """Map queries [B, C, Q] to class logits."""
        logits = self._transformer_class_head(queries).transpose(1, 2)
        return torch.cat((logits[..., :-1], logits[..., -1:] + self._void_bias), -1)

    def masks(self, queries: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Map queries [B, C, Q] and features [B, channels, H, W] to mask logits."""
        x = self._pixel_space_head_conv1bnact(self._pixel_space_head_conv0bnact(pixels))
        x = F.normalize(self._pixel_space_head_last_convbn(x), dim=1)
        logits = torch.einsum("bchw,bcq->bqhw", x, self._transformer_mask_head(queries))
        # One channel for all queries.
        return self._pixel_space_mask_batch_norm(logits.flatten(2)[:, None])[:, 0].view_as(logits)


class QueryAttention(nn.Module):
    """Attention among queries, heads already split: [B, heads, depth, Q] each to [B, channels, Q]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._batch_norm_similarity = BatchNorm2d(HEADS)
        self._batch_norm_retrieved_value = BatchNorm1d(channels)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        logits = self._batch_norm_similarity(torch.einsum("bhdl,bhdm->bhlm", q, k))
        weights = logits.float().softmax(-1).to(v.dtype)
        values = torch.einsum("bhlm,bhdm->bhdl", weights, v).flatten(1, 2)
        return F.gelu(self._batch_norm_retrieved_value(values))


class Layer(nn.Module):
    """One round of k-means: every pixel goes to its best query, every query takes up the sum of its pixels.

    Then queries attend to each other, in the state they had before the round.
    """

    def __init__(self, channels: int, dim: int, ffn: int, num_classes: int) -> None:
        super().__init__()
        self._depths = (dim // 2, dim // 2, dim)
        self._query_conv1_bn_act = ConvBN(dim, dim, dims=1, act=True)
        self._pixel_conv1_bn_act = ConvBN(channels, dim, act=True)
        self._query_qkv_conv_bn = ConvBN(dim, sum(self._depths), dims=1)
        self._pixel_v_conv_bn = ConvBN(dim, dim)
        self._query_self_attention = QueryAttention(dim)
        self._query_conv3_bn = ConvBN(dim, dim, dims=1)
        self._query_ffn_conv1_bn_act = ConvBN(dim, ffn, dims=1, act=True)
        self._query_ffn_conv2_bn = ConvBN(ffn, dim, dims=1)
        self._predcitor = Predictor(dim, dim, num_classes)
        self._kmeans_query_batch_norm_retrieved_value = BatchNorm1d(dim)
        self._kmeans_query_conv3_bn = ConvBN(dim, dim, dims=1)
        for last in (self._query_conv3_bn, self._query_ffn_conv2_bn, self._kmeans_query_conv3_bn):
            nn.init.zeros_(last.norm.weight)

    def forward(
        self, pixels: torch.Tensor, queries: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map features [B, channels, H, W] and queries [B, C, Q] to the next queries.

        Also returns the queries and the features that this layer's clusters were made of, for `predicted`.
        """
        pixel_space = self._pixel_conv1_bn_act(F.gelu(pixels))
        query_space = self._query_conv1_bn_act(queries)
        masks = self._predcitor.masks(query_space, pixel_space)
        sums = assigned_sums(masks, self._pixel_v_conv_bn(pixel_space))
        update = self._kmeans_query_batch_norm_retrieved_value(sums)
        queries = queries + self._kmeans_query_conv3_bn(update)

        qkv = self._query_qkv_conv_bn(query_space).split(self._depths, 1)
        attended = self._query_self_attention(*(part.unflatten(1, (HEADS, -1)) for part in qkv))
        queries = F.gelu(queries + self._query_conv3_bn(attended))
        ffn = self._query_ffn_conv2_bn(self._query_ffn_conv1_bn_act(queries))
        return F.gelu(queries + ffn), query_space, masks

    def classes(self, query_space: torch.Tensor) -> torch.Tensor:
        """Return what classes this layer takes its clusters for; training alone needs to know."""
        return self._predcitor.classes(query_space)


def assigned_sums(masks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return for each query the sum of the values [B, C, H, W] of the pixels whose mask logit [B, Q, H, W]
    is greatest for it: float32 [B, C, Q]."""
    owners = F.one_hot(masks.flatten(2).argmax(1), masks.shape[1])  # B, HW, Q
    with torch.autocast(masks.device.type, enabled=False):
        return values.flatten(2).float() @ owners.float()


class TransformerDecoder(nn.Module):
    """Rounds of k-means on the three coarsest maps of the pixel decoder, and the last word on the finest."""

    def __init__(
        self,
        widths: Sequence[int],
        layers: Sequence[int],
        num_queries: int,
        num_classes: int,
        dim: int,
        ffn: int,
    ) -> None:
        super().__init__()
        self._levels = [level for level, number in enumerate(layers) for _ in range(number)]
        self._kmax_transformer_layers = nn.ModuleList(
            Layer(EXPANSION * widths[level], dim, ffn, num_classes) for level in self._levels
        )
        self._cluster_centers = nn.Embedding(dim, num_queries)
        nn.init.trunc_normal_(self._cluster_centers.weight, std=1.0)
        self._class_embedding_projection = ConvBN(dim, dim, dims=1, act=True)
        self._mask_embedding_projection = ConvBN(dim, dim, dims=1, act=True)
        self._predcitor = Predictor(EXPANSION * widths[-1], dim, num_classes)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return class and mask logits; while training, those of every layer before them."""
        queries = self._cluster_centers.weight.expand(len(maps[0]), -1, -1)
        predictions = []
        for level, layer in zip(self._levels, self._kmax_transformer_layers, strict=True):
            queries, query_space, masks = layer(maps[level], queries)
            if self.training:
                predictions.append((layer.classes(query_space), masks))
        last = self._predcitor(
            self._mask_embedding_projection(queries),
            self._class_embedding_projection(queries),
            maps[-1],
        )
        return [*predictions, last]


class Head(nn.Module):
    """Pixel decoder and transformer decoder."""

    def __init__(self, pixel_decoder: PixelDecoder, predictor: TransformerDecoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    def forward(self, features: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return self.predictor(self.pixel_decoder(features))


class KMaXDeepLab(nn.Module):
    """Normalised pictures [B, 3, H, W] to class logits [B, Q, classes + 1] and mask logits [B, Q, h, w].

    Sides are at most 16 x 255; h and w are those of the finest map of the pixel decoder.
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = head

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.predictions(image)[-1]

    def predictions(self, image: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the answer; while training, after what every layer of the transformer predicts."""
        return self.sem_seg_head(self.backbone(image))
