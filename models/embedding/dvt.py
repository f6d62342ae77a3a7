"""Denoising Vision Transformers (https://arxiv.org/abs/2401.02957).

The feature maps of vision transformers carry a pattern that belongs to the position in the picture and not to what
it shows. A single transformer block with a position table of its own, trained on maps from which
a fit to each picture had removed that pattern, turns raw maps into clean ones. `denoised` weights are that
block, beside the unchanged weights of a backbone; `distilled` weights are a backbone that was fine-tuned to
give clean maps by itself. Backbones are timm's; the block's official names are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.layers.dino_vit import blocks
from models.layers.embedder import Embedder
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

PUBLISHED = "hf://jjiaweiyang/DVT"

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Width of a head of the denoiser.
_HEAD_DIM = 64


@dataclass(frozen=True)
class _Backbone:
    """A backbone with what the authors publish for it: folder of weights -> mIoU of a linear probe on VOC."""

    timm: str
    dim: int
    patch: int
    pixels: tuple[tuple[float, ...], tuple[float, ...]]
    miou: dict[str, float]
    licence: Licence | None = None


# The backbone's own weights, which the authors' are beside or were made from.
_MAE = Licence(code="MIT", weights="CC-BY-NC-4.0 (MAE's)", commercial=False)

_BACKBONES: dict[str, _Backbone] = {
    "dinov2-small": _Backbone(
        "vit_small_patch14_dinov2.lvd142m", 384, 14, _IMAGENET, {"voc_denoised": 82.78}
    ),
    "dinov2-base": _Backbone(
        "vit_base_patch14_dinov2.lvd142m",
        768,
        14,
        _IMAGENET,
        {
            "voc_denoised": 84.92,
            "voc_distilled": 85.10,
            "imgnet_denoised": 85.17,
            "imgnet_distilled": 85.33,
        },
    ),
    "dinov2-large": _Backbone(
        "vit_large_patch14_dinov2.lvd142m", 1024, 14, _IMAGENET, {"voc_denoised": 85.25}
    ),
    "dinov2-reg-small": _Backbone(
        "vit_small_patch14_reg4_dinov2.lvd142m", 384, 14, _IMAGENET, {"voc_denoised": 81.93}
    ),
    "dinov2-reg-base": _Backbone(
        "vit_base_patch14_reg4_dinov2.lvd142m",
        768,
        14,
        _IMAGENET,
        {"voc_denoised": 84.58, "voc_distilled": 84.36},
    ),
    "dinov2-reg-large": _Backbone(
        "vit_large_patch14_reg4_dinov2.lvd142m", 1024, 14, _IMAGENET, {"voc_denoised": 84.37}
    ),
    "deit3-base": _Backbone(
        "deit3_base_patch16_224.fb_in1k",
        768,
        16,
        _IMAGENET,
        {"voc_denoised": 73.52, "voc_distilled": 73.63},
    ),
    "clip-base": _Backbone(
        "vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",
        768,
        16,
        _CLIP,
        {"voc_denoised": 79.50, "voc_distilled": 79.86},
    ),
    "dino-base": _Backbone(
        "vit_base_patch16_224.dino",
        768,
        16,
        _IMAGENET,
        {"voc_denoised": 66.41, "voc_distilled": 66.80},
    ),
    "mae-base": _Backbone(
        "vit_base_patch16_224.mae",
        768,
        16,
        _IMAGENET,
        {"voc_denoised": 50.65, "voc_distilled": 51.91},
        _MAE,
    ),
    "eva02-base": _Backbone(
        "eva02_base_patch16_clip_224.merged2b",
        768,
        16,
        _CLIP,
        {"voc_denoised": 73.76, "voc_distilled": 75.93},
    ),
    "augreg-base": _Backbone(
        "vit_base_patch16_384.augreg_in21k_ft_in1k",
        768,
        16,
        _HALF,
        {"voc_denoised": 74.82, "voc_distilled": 76.26},
    ),
}


class PatchFeatures(nn.Module):
    """A vision transformer of timm as the source of a map of features, for pictures of any size.

    A `stride` below the patch's size makes patches overlap, with the same weights.
    """

    def __init__(self, name: str, stride: int | None = None, **changes: Any) -> None:
        super().__init__()
        self.model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **changes)
        (self.patch_size, _) = self.model.patch_embed.patch_size
        self.stride = stride or self.patch_size
        self.model.patch_embed.proj.stride = (self.stride, self.stride)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map [B, 3, H, W] to class token [B, C] and features [B, h, w, C], both after the final norm."""
        rows, columns = ((side - self.patch_size) // self.stride + 1 for side in image.shape[-2:])
        tokens = self.model.forward_features(image)
        # Registers, if there are any, stand between the class token and the patches.
        features = tokens[:, self.model.num_prefix_tokens :]
        return tokens[:, 0], features.unflatten(1, (rows, columns))


class DenoisedViT(nn.Module):
    """A backbone and, where it was not fine-tuned, the block that cleans its features.

    Maps normalised pictures [B, 3, H, W] to clean features [B, h, w, C]. `table` is the grid (rows,
    columns) that the denoiser's positions are made for; None leaves them out.
    """

    def __init__(self, vit: PatchFeatures, depth: int, table: tuple[int, int] | None) -> None:
        super().__init__()
        self.vit = vit
        self.table = table
        dim = vit.model.embed_dim
        self.pos_embed: nn.Parameter | None = None
        self.denoiser: nn.Module | None = None
        if depth:
            made = blocks(dim, depth, dim // _HEAD_DIM)
            self.denoiser = made[0] if depth == 1 else nn.Sequential(*made)
            if table is not None:
                self.pos_embed = nn.Parameter(torch.zeros(1, table[0] * table[1], dim))
                nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.represent(image)[1]

    def clean(self, features: torch.Tensor) -> torch.Tensor:
        """Map raw features [B, h, w, C] to clean ones."""
        if self.denoiser is None:
            return features
        grid = features.shape[1:3]
        x = features.flatten(1, 2)
        if self.pos_embed is not None:
            x = x + resample_abs_pos_embed(
                self.pos_embed, list(grid), list(self.table or grid), num_prefix_tokens=0
            )
        return self.denoiser(x).unflatten(1, grid)

    def represent(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the backbone's class token [B, C] and the clean features [B, h, w, C]."""
        token, features = self.vit(image)
        return token, self.clean(features)


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "backbone": "vit_small_patch14_dinov2",
                "changes": {
                    "img_size": 64,
                    "patch_size": 8,
                    "embed_dim": 64,
                    "depth": 6,
                    "num_heads": 2,
                    "init_values": 1.0,
                },
                "stride": 8,
                "depth": 1,
                "table": (8, 8),
            },
            image=ImageInput(height=64, width=64, resize="squash", interpolation="bicubic"),
            demo=True,
        )
    ]
    for name, backbone in _BACKBONES.items():
        # Both sizes make nearly the same number of patches; sides are not kept in proportion.
        size = 518 if backbone.patch == 14 else 512
        side = size // backbone.patch
        mean, std = backbone.pixels
        for folder, miou in backbone.miou.items():
            distilled = folder.endswith("distilled")
            sources = [Source(f"{PUBLISHED}/{folder}/{backbone.timm}.pth")]
            if not distilled:
                sources.append(Source(f"hf://timm/{backbone.timm}/model.safetensors"))
            variants.append(
                Variant(
                    f"{name}-{folder.replace('_', '-')}",
                    config={
                        "backbone": backbone.timm,
                        "changes": {},
                        "stride": backbone.patch,
                        "depth": 0 if distilled else 1,
                        "table": None if distilled else (side, side),
                    },
                    image=ImageInput(
                        height=size,
                        width=size,
                        resize="squash",
                        interpolation="bicubic",
                        mean=mean,
                        std=std,
                    ),
                    sources=tuple(sources),
                    metrics=(
                        Metric(
                            name="mIoU",
                            value=miou,
                            dataset="PASCAL VOC",
                            origin="published",
                            note="linear probe on the features",
                        ),
                    ),
                    licence=backbone.licence,
                )
            )
    return {variant.name: variant for variant in variants}


@register
class DVTArchitecture(Architecture):
    """Clean dense features of vision transformers."""

    slug = "dvt"
    title = "DVT"
    task = Task.EMBEDDING
    paper = Paper(slug="dvt", title="Denoising Vision Transformers", year=2024, arxiv="2401.02957")
    origin = "own"
    licence = Licence(code="MIT", weights="MIT")
    variants = _variants()
    max_batch = 8
    preferred_batches = (4, 8)

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build timm's `backbone` with `changes` and a denoiser of `depth` blocks (0: distilled)."""
        backbone = PatchFeatures(config["backbone"], config["stride"], **config["changes"])
        table = config["table"]
        return DenoisedViT(backbone, config["depth"], None if table is None else tuple(table))

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Take the authors' denoiser (`denoiser`), their distilled backbone (`model`) or timm's backbone.

        A denoised network is the sum of the first and the last.
        """
        wrapped = checkpoint.get("denoiser")
        state = unwrapped(wrapped if isinstance(wrapped, Mapping) else checkpoint)
        whole = any(name.startswith(("vit.", "denoiser.")) for name in state)
        if whole or wrapped is not None:
            return state
        bare = (name.removeprefix("model.") for name in state)
        return {
            f"vit.model.{name}": value
            for name, value in zip(bare, state.values(), strict=True)
            # A classifier's head; the stand-in for masked patches in training.
            if not name.startswith(("head.", "fc_norm.")) and name != "mask_token"
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Embedder(network, card, device)
