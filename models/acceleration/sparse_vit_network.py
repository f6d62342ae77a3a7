"""Sparse then Prune: Toward Efficient Vision Transformers (2023).

https://arxiv.org/abs/2307.11988. Written from the paper; the authors' code is yogiprsty/Sparse-ViT,
which states no licence and comes without weights.

ViT-B/16 is trained with a term that wants few, large attention weights; then the smallest weights of
the whole network become zero. The network is timm's, with PyTorch's default epsilon; it stays dense,
so that zeros alone save no time, only space where the weights are stored compressed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import prune

from models.architecture import StateDict, unwrapped

# The weight of `attention_density` in the training loss, beside the cross entropy's 1.
DENSITY_WEIGHT = 0.01

_NAMES = {
    # Before the next, which is a part of it.
    "transformer.pos_embedding.pos_embedding": "pos_embed",
    "embedding.": "patch_embed.proj.",
    "transformer.encoder_layers.": "blocks.",
    "transformer.norm.": "norm.",
    "classifier.": "head.",
    ".attn.out.": ".attn.proj.",
}


@dataclass(frozen=True)
class SparseViTConfig:
    """Sizes of the network; the defaults are ViT-B/16's for CIFAR-10. `image_size`: height, width in pixels."""

    image_size: tuple[int, int] = (384, 384)
    patch_size: tuple[int, int] = (16, 16)
    emb_dim: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12
    num_layers: int = 12
    num_classes: int = 10


@dataclass(frozen=True)
class Pruning:
    """How many of the weights in the pool were set to zero."""

    zeros: int
    pool: int


def sparse_vit(config: SparseViTConfig) -> VisionTransformer:
    """Build the network, which maps [B, 3, H, W] to logits [B, num_classes]."""
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        embed_dim=config.emb_dim,
        depth=config.num_layers,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.emb_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )


def released_state(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the weights of the authors' checkpoint under timm's names.

    Theirs has queries, keys and values apart, with an axis for the heads, and inputs before outputs.
    """
    state: StateDict = {}
    for name, value in unwrapped(checkpoint).items():
        for official, own in _NAMES.items():
            name = name.replace(official, own)
        state[name] = value
    for name in [name for name in state if ".attn.query." in name]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        flat = [p.flatten(1).T if p.ndim == 3 else p.flatten() for p in parts]
        state[name.replace("query", "qkv")] = torch.cat(flat)
    for name in [name for name in state if name.endswith(".attn.proj.weight")]:
        state[name] = state[name].flatten(0, -2).T.contiguous()
    return state


def attention_density(weights: Tensor) -> Tensor:
    """Return the mean of ln(1 + a^2) over attention weights of any shape, a scalar that training adds to the loss.

    The released code takes the weights of the last block alone.
    """
    return weights.square().log1p().mean()


def pruned(network: VisionTransformer, ratio: float) -> tuple[VisionTransformer, Pruning]:
    """Return a copy in which the share `ratio` of the weights, the smallest of the whole network, is zero.

    The pool has the weights of the patch convolution, of each block's norms and linear layers, and of
    the classifier; no bias, no token, no position and not the final norm. Raises ValueError where
    `ratio` is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"prune ratio {ratio}: not in [0, 1)")
    network = copy.deepcopy(network)
    modules: list[nn.Module] = [network.patch_embed.proj]
    for block in network.blocks:
        attention: Attention = block.attn
        modules += [block.norm1, attention.qkv, attention.proj]
        modules += [block.norm2, block.mlp.fc1, block.mlp.fc2]
    modules.append(network.head)
    pool = [(module, "weight") for module in modules]
    prune.global_unstructured(pool, pruning_method=prune.L1Unstructured, amount=float(ratio))
    for module, name in pool:
        prune.remove(module, name)
    weights = [module.weight for module in modules]
    return network, Pruning(
        zeros=sum(int((weight == 0).sum()) for weight in weights),
        pool=sum(weight.numel() for weight in weights),
    )
