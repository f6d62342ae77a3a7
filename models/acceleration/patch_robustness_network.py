"""Are Vision Transformers Robust to Patch Perturbations? (ECCV 2022).

https://arxiv.org/abs/2111.10659. Written from the paper; its attacks and its attention rollout are
published as JindongGu/ViT_Patch_Robustness (MIT), without the temperature.

An attention map that is drawn to one adversarial patch misleads a vision transformer. A higher
temperature of the attention's softmax spreads the attention, without training. Where exactly the
temperature enters is inferred: it divides the scores of every head in every block.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from timm.layers import Attention
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
Fusion = Literal["mean", "max", "min"]


class Normalised(nn.Module):
    """A classifier of pictures [B, 3, H, W] in [0, 1]: normalises them for `network` itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.network((image - self.mean) / self.std)


@torch.no_grad()
def with_temperature(network: Network, temperature: float) -> Network:
    """Return a copy of a trained network whose attention is softmax(q k^T / (temperature * sqrt(d))).

    The temperature is folded into the queries' weights, so that the copy is as fast in any runtime as
    the network, whose modules must include timm's `Attention`. 1 changes nothing, more spreads the
    attention. Raises ValueError where the temperature is not positive or there is no such attention.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be positive")
    network = copy.deepcopy(network)
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    if not attentions:
        raise ValueError("the network has no attention that takes a temperature")
    for attention in attentions:
        if isinstance(attention.q_norm, nn.Identity):
            queries, parameters = attention.attn_dim, attention.qkv.parameters()
        else:  # a norm would undo what is done to the weights before it
            queries, parameters = None, attention.q_norm.parameters()
        for parameter in parameters:
            parameter[:queries] /= temperature
    return network


def cell_mask(size: int, cells: int, index: int) -> Tensor:
    """Return a mask [1, size, size], 1 in cell `index` of a grid of cells * cells, counted row by row.

    Raises ValueError where the picture cannot be cut so, or has no such cell.
    """
    if size % cells or not 0 <= index < cells**2:
        raise ValueError(f"no cell {index} in a grid of {cells} x {cells} on {size} pixels")
    side = size // cells
    row, column = side * (index // cells), side * (index % cells)
    mask = torch.zeros(1, size, size)
    mask[:, row : row + side, column : column + side] = 1
    return mask


def rollout(maps: Sequence[Tensor], discard: float = 0.9, fusion: Fusion = "mean") -> Tensor:
    """Return how much the class token's output draws on each patch, [B, side, side], at most 1.

    `maps`: attention [B, heads, 1 + N, 1 + N] of each block, the first first, of a square grid of N
    patches. `discard`: the share of a block's smallest weights that is set to 0.
    """
    batch, _, tokens, _ = maps[0].shape
    identity = torch.eye(tokens, device=maps[0].device)
    total = identity.expand(batch, -1, -1)
    for weights in maps:
        fused = _fused(weights, fusion).flatten(1)
        lowest = fused.topk(int(fused.shape[1] * discard), dim=1, largest=False).indices
        first = fused[:, 0].clone()
        fused = fused.scatter(1, lowest, 0)
        fused[:, 0] = first  # the class token's attention to itself is never discarded
        mixed = (fused.view(batch, tokens, tokens) + identity) / 2
        # The released code divides columns, not rows, by the sums of the rows of the same number.
        total = (mixed / mixed.sum(-1)[:, None]) @ total
    patches = total[:, 0, 1:]
    side = round(patches.shape[1] ** 0.5)
    return (patches / patches.amax(1, keepdim=True)).view(batch, side, side)


def _fused(weights: Tensor, fusion: Fusion) -> Tensor:
    match fusion:
        case "mean":
            return weights.mean(1)
        case "max":
            return weights.amax(1)
        case "min":
            return weights.amin(1)
