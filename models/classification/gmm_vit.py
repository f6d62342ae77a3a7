"""GMM-ViT: Toward a Deeper Understanding: RetNet Viewed through Convolution (https://arxiv.org/abs/2309.05375).

A small ViT for small data sets. Each head multiplies its attention scores, before the softmax, by a
sum of Gaussians of the distance between two tokens on the grid; the weight and the width of every
Gaussian are learned. With the mask there is no class token, and the head takes the mean of the
tokens; without it (the baseline) the network is a plain ViT with a class token.

The authors publish no checkpoints. Names are those of their code
(https://github.com/CatworldLee/Gaussian-Mixture-Mask-Attention), so that whoever trained with it can bring the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

# Of the network with the mask on pictures of 32x32; 64x64 pictures are cut into as many patches.
_FLOPS = 170_900_000
_UNPUBLISHED = "The authors publish no weights for this network."

_CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100 = tuple(name.replace("_", " ") for name in _CIFAR100_NAMES.split())
_SVHN = tuple("0123456789")

# name: (title, side in pixels, classes, labels, mean, std, top-1 of the masked and of the plain network).
# Tiny-ImageNet's 200 classes come with the data set and are not listed here.
_DATA_SETS: dict[str, tuple[str, int, int, tuple[str, ...], Any, Any, float, float]] = {
    "cifar10": (
        "CIFAR-10",
        32,
        10,
        _CIFAR10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        95.06,
        93.65,
    ),
    "cifar100": (
        "CIFAR-100",
        32,
        100,
        _CIFAR100,
        (0.5070, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        77.81,
        75.36,
    ),
    "svhn": (
        "SVHN",
        32,
        10,
        _SVHN,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        98.01,
        97.93,
    ),
    "tiny-imagenet": (
        "Tiny-ImageNet",
        64,
        200,
        (),
        (0.4802, 0.4481, 0.3975),
        (0.2770, 0.2691, 0.2821),
        62.27,
        59.89,
    ),
}


# The authors' other two sizes, for which they give no accuracy: (width, heads, {side in pixels: side of a patch}).
_OTHER_SIZES = {"base": (256, 4, {32: 2, 64: 8}), "heat": (192, 6, {32: 2, 64: 4})}


def closeness(grid: int) -> torch.Tensor:
    """Return exp(-d^2 / 2) [N, N] for the distances d between the N places of a square grid.

    As the square root of float32 exp(-d^2), which is exactly 0 beyond a distance of about 10: a wide Gaussian raises
    this table to a small power, and 0 stays 0 where the closed form would not.
    """
    places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))
    squared = (places[:, None] - places[None]).square().sum(dim=-1)
    return torch.exp(-squared.float()).sqrt()


class GaussianMixtureMask(nn.Module):
    """Weights of pairs of tokens, for each head: `kernels` Gaussians of widths `sigma`, weighted by `alpha` of any sign."""

    def __init__(self, kernels: int, heads: int) -> None:
        super().__init__()
        self.sigma = nn.Parameter(10 * torch.randn(kernels, heads, 1, 1) + 10)
        self.alpha = nn.Parameter(2 * torch.randn(kernels, heads, 1, 1))

    def forward(self, closeness: torch.Tensor) -> torch.Tensor:
        """Map the table [N, N] of `closeness` to weights [heads, N, N]."""
        powers = 1 / (self.sigma.square() + 1e-5)
        weights = self.alpha[0] * closeness ** powers[0]
        for alpha, power in zip(self.alpha[1:], powers[1:], strict=True):
            weights = weights + alpha * closeness**power
        return weights


class Tiles(nn.Module):
    """Cuts [B, C, H, W] into tiles, flattened by row, column, channel: [B, N, side * side * C]."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tiles = image.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))
        # B, C, rows, y, columns, x -> B, rows, columns, y, x, C
        return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class MaskedAttention(nn.Module):
    """Attention whose scores a mixture of Gaussians weighs, if `kernels` is not 0. Maps [B, N, dim] to the same."""

    def __init__(self, dim: int, heads: int, head_dim: int, kernels: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_dim**-0.5
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.mask = GaussianMixtureMask(kernels, heads) if kernels else None
        self.attend = nn.Softmax(dim=-1)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim))

    def forward(self, x: torch.Tensor, closeness: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) * self.scale  # B, heads, N, N
        if self.mask is not None and closeness is not None:
            scores = scores * self.mask(closeness)
        attended = self.attend(scores).to(v.dtype) @ v
        return self.to_out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them. Maps [B, N, dim] to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # Identities keep the places of the authors' dropout, and with them the names of the weights.
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """LayerNorm, then `fn` of its result and of whatever else is given."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        return self.fn(self.norm(x), *others)


class Transformer(nn.Module):
    """Layers of attention and MLP, each with a way around it. Maps [B, N, dim] to the same."""

    def __init__(
        self, dim: int, depth: int, heads: int, head_dim: int, hidden: int, kernels: int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    PreNorm(dim, MaskedAttention(dim, heads, head_dim, kernels)),
                    PreNorm(dim, FeedForward(dim, hidden)),
                )
            )
            for _ in range(depth)
        )

    def forward(self, x: torch.Tensor, closeness: torch.Tensor | None) -> torch.Tensor:
        for attention, feed_forward in self.layers:
            x = attention(x, closeness) + x
            x = feed_forward(x) + x
        return x


class GMMViT(nn.Module):
    """ViT with Gaussian mixture masks (`kernels` a head), or plain ViT (`kernels` 0).

    Maps [B, 3, S, S], S being `image_size`, to logits [B, classes].
    """

    closeness: torch.Tensor | None

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        head_dim: int,
        mlp_ratio: float,
        kernels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        grid = image_size // patch_size
        self.to_patch_embedding = nn.Sequential(
            Tiles(patch_size), nn.Linear(3 * patch_size**2, dim)
        )
        self.cls_token = None if kernels else nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, grid**2 + (0 if kernels else 1), dim))
        # A constant of the geometry; the authors' checkpoints repeat it in every layer.
        self.register_buffer("closeness", closeness(grid) if kernels else None, persistent=False)
        self.transformer = Transformer(dim, depth, heads, head_dim, int(dim * mlp_ratio), kernels)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.to_patch_embedding(image)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.transformer(x + self.pos_embedding, self.closeness)
        return self.mlp_head(x.mean(dim=1) if self.cls_token is None else x[:, 0])


def _variants() -> dict[str, Variant]:
    common = {"dim": 192, "depth": 9, "heads": 12, "head_dim": 16, "mlp_ratio": 2.0}
    variants = [
        Variant(
            "demo",
            config={
                "image_size": 64,
                "patch_size": 8,
                "dim": 96,
                "depth": 5,
                "heads": 6,
                "head_dim": 16,
                "mlp_ratio": 2.0,
                "kernels": 5,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for name, (title, side, classes, labels, mean, std, masked, plain) in _DATA_SETS.items():
        for prefix, kernels, score in (("", 5, masked), ("plain-", 0, plain)):
            variants.append(
                Variant(
                    prefix + name,
                    config=common
                    | {
                        "image_size": side,
                        "patch_size": side // 8,
                        "kernels": kernels,
                        "num_classes": classes,
                    },
                    image=ImageInput(height=side, width=side, mean=mean, std=std),
                    labels=labels,
                    metrics=(
                        Metric(
                            name="top-1",
                            value=score,
                            dataset=title,
                            origin="published",
                            note="with the mask" if kernels else "plain ViT, the baseline",
                        ),
                    ),
                    flops=_FLOPS if kernels else None,
                    notes=(_UNPUBLISHED,),
                )
            )
        for size, (dim, heads, patches) in _OTHER_SIZES.items():
            variants.append(
                Variant(
                    f"{size}-{name}",
                    config={
                        "image_size": side,
                        "patch_size": patches[side],
                        "dim": dim,
                        "depth": 8,
                        "heads": heads,
                        "head_dim": dim // heads,
                        "mlp_ratio": 2.0,
                        "kernels": 5,
                        "num_classes": classes,
                    },
                    image=ImageInput(height=side, width=side, mean=mean, std=std),
                    labels=labels,
                    notes=(_UNPUBLISHED,),
                )
            )
    return {variant.name: variant for variant in variants}


@register
class GMMViTArchitecture(Architecture):
    """GMM-ViT and its baseline for the classification of small pictures."""

    slug = "gmm-vit"
    title = "GMM-ViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="gmm-vit",
        title="Toward a Deeper Understanding: RetNet Viewed through Convolution",
        year=2023,
        arxiv="2309.05375",
    )
    origin = "own"
    licence = Licence(code="none stated", weights="none published", commercial=False)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network from `GMMViT`'s arguments."""
        return GMMViT(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Drop the tables of distances, which the authors' code saves with the weights."""
        return {
            name: value
            for name, value in unwrapped(checkpoint).items()
            if name != "mask" and not name.endswith(".fn.mask.mask")
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
