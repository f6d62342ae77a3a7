"""ViR: Vision Retention Networks (https://arxiv.org/abs/2310.19731).

A plain vision transformer in which attention is replaced by retention: the score of a query and an earlier key is
weighted by a power of their distance, with one rate of decay per head. A class token at the END of the
sequence sees all patches. Three ways to compute it:

  * `parallel`: all scores at once, with a softmax over them, as the networks were trained and published. Scores of later
    tokens are multiplied by 0 before the softmax, not removed, so later tokens keep some weight.
  * `recurrent`: token after token, by a matrix of fixed size per head that decays and takes up each token; no softmax.
  * `chunkwise`: scores inside a chunk, the same matrix between chunks; equal to `recurrent`, faster.

With the same weights the parallel form is therefore not equal to the two others, and weights serve in the form they
were trained in. The authors' repository (NVlabs/ViR) has no code; this follows the one that its authors published
without their names (anom63931/ViR), which holds the isotropic models of the paper's first version, and its names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from timm.layers import LayerScale, Mlp, PatchEmbed, resample_abs_pos_embed
from torch import nn

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

Mode = Literal["parallel", "recurrent", "chunkwise"]
Pool = Literal["token_last", "token", "avg", "final"]

# Decay of the first and of the last head: 1 - 1/32 to 1 - 1/512 per token.
_FASTEST, _SLOWEST = 32, 512
_EPS = 1e-6
# name: (width, depth, heads, patch)
_SIZES = {
    "small-patch16": (384, 12, 6, 16),
    "base-patch16": (768, 12, 12, 16),
    "large-patch16": (1024, 24, 16, 16),
    "large-patch14": (1024, 24, 16, 14),
}


def decay_rates(heads: int, device: torch.device | None = None) -> torch.Tensor:
    """Return the factor per token of each head, float32 [heads], from the fastest decay to the slowest."""
    exponents = torch.linspace(-math.log(_FASTEST), -math.log(_SLOWEST), heads, device=device)
    return 1 - exponents.exp()


def decay_mask(rates: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return rate ** (i - j) for query i and key j <= i, 0 for later keys: [heads, tokens, tokens]."""
    position = torch.arange(tokens, device=rates.device)
    distance = position[:, None] - position
    return (rates[:, None, None] ** distance.clamp(min=0)).tril()


def parallel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rates: torch.Tensor
) -> torch.Tensor:
    """Return the values mixed by the softmax of all decayed scores; all tensors are [B, heads, N, head_dim]."""
    scores = q @ k.transpose(-2, -1) * decay_mask(rates, q.shape[2])
    return scores.softmax(-1) @ v


def recurrent(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rates: torch.Tensor
) -> torch.Tensor:
    """Return the values mixed by decayed scores, one token after the other."""
    factor = rates[:, None, None]
    state = q.new_zeros(())
    mixed = []
    for t in range(q.shape[2]):
        state = factor * state + k[:, :, t, :, None] * v[:, :, t, None, :]  # B, heads, dim, dim
        mixed.append(q[:, :, t, None, :] @ state)
    return torch.cat(mixed, dim=2)


def chunkwise(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rates: torch.Tensor, chunk: int
) -> torch.Tensor:
    """Return the same as `recurrent`, computed `chunk` tokens at a time; the last chunk may be shorter."""
    mixed: list[torch.Tensor] = []
    state: torch.Tensor | None = None
    factor = rates[:, None, None]
    for q_c, k_c, v_c in zip(q.split(chunk, 2), k.split(chunk, 2), v.split(chunk, 2), strict=True):
        length = q_c.shape[2]
        position = torch.arange(1, length + 1, device=q.device)[:, None]
        out = (q_c @ k_c.transpose(-2, -1) * decay_mask(rates, length)) @ v_c
        taken = (k_c * factor ** (length - position)).transpose(-2, -1) @ v_c
        if state is not None:
            out = out + q_c @ state * factor**position
            taken = taken + factor**length * state
        state = taken
        mixed.append(out)
    return torch.cat(mixed, dim=2)


class Retention(nn.Module):
    """Retention with several heads: [B, N, dim] to the same shape."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, mode: Mode, chunk: int) -> torch.Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B, heads, N, head_dim
        q = q * q.shape[-1] ** -0.5
        rates = decay_rates(self.heads, x.device)
        if mode == "parallel":
            mixed = parallel(q, k, v, rates)
        elif mode == "recurrent":
            mixed = recurrent(q, k, v, rates)
        else:
            mixed = chunkwise(q, k, v, rates, chunk)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """Retention and two linear layers, each on the normalised input, scaled per channel, and added to it."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.retention = Retention(dim, heads)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor, mode: Mode, chunk: int) -> torch.Tensor:
        x = x + self.ls1(self.retention(self.norm1(x), mode, chunk))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionRetention(nn.Module):
    """The network: pictures [B, 3, H, W] of the size it was built for to logits [B, classes].

    `pool` says where the class token lies and what the head reads: `token_last` (the published networks), `token`
    (first), `avg` (mean of the tokens but the first, where there is a class token) or `final` (the last patch).
    `bidirectional` appends the reversed sequence.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        layer_scale: float | None,
        num_classes: int,
        mlp_ratio: float = 4.0,
        mode: Mode = "parallel",
        chunk: int = 16,
        pool: Pool = "token_last",
        class_token: bool = True,
        class_position: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if mode not in get_args(Mode) or pool not in get_args(Pool):
            raise ValueError(f"unknown mode {mode!r} or pool {pool!r}")
        self.mode: Mode = mode
        self.chunk = chunk
        self.pool = pool
        self.class_position = class_position
        self.bidirectional = bidirectional
        self.patch_embed = PatchEmbed(image_size, patch_size, embed_dim=dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        positions = self.patch_embed.num_patches + (class_token and class_position)
        self.pos_embed = nn.Parameter(torch.randn(1, positions, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, layer_scale) for _ in range(depth))
        averaged = pool == "avg"
        self.norm = nn.Identity() if averaged else nn.LayerNorm(dim, eps=_EPS)
        self.fc_norm = nn.LayerNorm(dim, eps=_EPS) if averaged else nn.Identity()
        self.head = nn.Linear(dim, num_classes)

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Return the sequence that the blocks take: patches with their positions, and the class token."""
        x = self.patch_embed(image)
        if not self.class_position:
            x = x + self.pos_embed
        if self.cls_token is not None and self.pool in ("token", "token_last"):
            parts = [self.cls_token.expand(x.shape[0], -1, -1), x]
            x = torch.cat(parts if self.pool == "token" else parts[::-1], dim=1)
        if self.class_position:
            x = x + self.pos_embed
        return torch.cat((x, x.flip(1)), dim=1) if self.bidirectional else x

    def tokens(
        self, image: torch.Tensor, mode: Mode | None = None, chunk: int | None = None
    ) -> torch.Tensor:
        """Return the normalised sequence after the last block [B, N, dim], computed in `mode`."""
        x = self.embed(image)
        for block in self.blocks:
            x = block(x, mode or self.mode, chunk or self.chunk)
        return self.norm(x)

    def forward(
        self, image: torch.Tensor, mode: Mode | None = None, chunk: int | None = None
    ) -> torch.Tensor:
        x = self.tokens(image, mode, chunk)
        if self.pool == "avg":
            x = x[:, int(self.cls_token is not None) :].mean(1)
        else:
            x = x[:, 0] if self.pool == "token" else x[:, -1]
        return self.head(self.fc_norm(x))


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": (64, 64),
                "patch_size": 8,
                "dim": 96,
                "depth": 4,
                "heads": 4,
                "layer_scale": 0.1,
                "mode": "parallel",
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    image = imagenet.evaluation(224, crop=0.9).model_copy(
        update={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    )
    unpublished = (
        "The authors publish no weights; no network of theirs confirms the pre-processing."
    )
    linear = "For weights trained without the softmax: equal to no output of the parallel form."
    for name, (dim, depth, heads, patch) in _SIZES.items():
        config = {
            "image_size": (224, 224),
            "patch_size": patch,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "layer_scale": 1e-5,
            "num_classes": 1000,
        }
        variants += [
            Variant(
                f"{name}-224" if mode == "parallel" else f"{name}-224-{mode}",
                config=config | {"mode": mode},
                image=image,
                labels=imagenet.labels(),
                notes=(unpublished,) if mode == "parallel" else (unpublished, linear),
            )
            for mode in get_args(Mode)
        ]
    return {variant.name: variant for variant in variants}


@register
class ViRArchitecture(Architecture):
    """Vision Retention Networks for the classification of images."""

    slug = "vir"
    title = "ViR"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="vir",
        title="ViR: Towards Efficient Vision Retention Backbones",
        year=2023,
        arxiv="2310.19731",
    )
    origin = "own"
    licence = Licence(code="none stated", weights="none published", commercial=False)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network for pictures of `image_size` (height, width), computed in `mode`."""
        options = dict(config)
        options["image_size"] = tuple(options["image_size"])
        return VisionRetention(**options)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Take the averaged weights where a checkpoint of timm's training script holds them.

        The positions of another resolution are resized (bicubic, antialiased) as in the authors' code.
        """
        averaged = checkpoint.get("state_dict_ema")
        state = unwrapped(averaged if isinstance(averaged, Mapping) else checkpoint)
        positions = state.get("pos_embed")
        grid = [side // config["patch_size"] for side in config["image_size"]]
        prefix = int(config.get("class_token", True) and config.get("class_position", False))
        if positions is not None and positions.shape[1] != grid[0] * grid[1] + prefix:
            state["pos_embed"] = resample_abs_pos_embed(positions, grid, num_prefix_tokens=prefix)
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)
