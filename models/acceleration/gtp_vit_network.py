"""GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation (WACV 2024).

https://arxiv.org/abs/2311.03035. Written from the paper; the published experiments use
Ackesnal/GTP-ViT (Apache-2.0).

Every block of a trained vision transformer removes the least important of its patch tokens, after a
share of each has been added to those neighbours that stay. Neighbours are those of a graph that is
made once a picture, from the places and the likeness of its embedded patches (section 3). There is
nothing to train and no weight to add: `GTPVisionTransformer` wraps a loaded network of timm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.layers.vit_attention import attended, attention_map

Graph = Literal["spatial", "semantic", "mixed"]
Propagation = Literal["graph", "mean", "none"]


@dataclass(frozen=True)
class GTPConfig:
    """What is removed, and where it goes; the defaults are the released code's, with 8 tokens a block.

    `propagate`: patch tokens removed in every block, or one number a block. `selection`: a key of
    `SCORES`, or `random`. `propagation`: to neighbours in the graph, into one token that is their
    mean, or nowhere. `neighbours`: most similar patches that the semantic graph links to each.
    `alpha`: the share of a removed token that its neighbours get. `attention_share`: the share of the
    attention weights that is kept, the largest of each head (theta in the paper, 1 keeps all).
    `token_scales`: whether tokens weigh more in the attention by what they have received.
    """

    propagate: int | tuple[int, ...] = 8
    selection: str = "mixed-max"
    propagation: Propagation = "graph"
    graph: Graph = "mixed"
    neighbours: int = 8
    alpha: float = 0.1
    attention_share: float = 1.0
    token_scales: bool = False

    def __post_init__(self) -> None:
        if self.selection not in (*SCORES, "random"):
            raise ValueError(f"selection {self.selection!r}: not one of {[*SCORES, 'random']}")
        if not 0 < self.attention_share <= 1:
            raise ValueError(f"attention_share {self.attention_share}: not in (0, 1]")
        if self.graph != "spatial" and self.neighbours < 1:
            raise ValueError(f"neighbours {self.neighbours}: a {self.graph} graph needs 1 or more")
        if self.token_scales and self.propagation != "graph":
            raise ValueError("token scales are defined for propagation in the graph only")


@dataclass(frozen=True)
class Tokens:
    """What a block hands to the next: `prefix` class tokens (or none) and N patch tokens.

    `x`: [B, prefix + N, C]. `graph`: [B, N, N], or None where none is used. `scales`: [B, prefix + N],
    or None. `positions`: [B, N], where in the grid, row by row, a token was embedded; -1 is the mean
    of removed tokens.
    """

    x: Tensor
    graph: Tensor | None
    scales: Tensor | None
    positions: Tensor
    prefix: int


def spatial_graph(height: int, width: int) -> Tensor:
    """Return the links [N, N] of a grid of N = height * width patches to their up to 8 neighbours, 0 or 1."""
    row, column = (
        axis.flatten()
        for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    near = [(axis[:, None] - axis[None]).abs() <= 1 for axis in (row, column)]
    return (near[0] & near[1]).float().fill_diagonal_(0)


def semantic_graph(patches: Tensor, neighbours: int) -> Tensor:
    """Link each of the patches [B, N, C] to the `neighbours` whose embeddings are most similar by cosine.

    [B, N, N], 0 or 1, one row a patch; links are not mutual.
    """
    unit = patches / patches.norm(dim=-1, keepdim=True)
    likeness = unit @ unit.transpose(-2, -1)
    # A patch is itself the most similar.
    lowest = likeness.topk(neighbours + 1, dim=-1).values[..., -1:]
    links = (likeness >= lowest).float()
    return links - torch.eye(links.shape[-1], device=links.device)


def normalised(graph: Tensor) -> Tensor:
    """Divide each link [B, N, N] by the square root of the links of both its ends, counted in rows."""
    scale = graph.sum(-1).rsqrt()
    return scale[..., :, None] * graph * scale[..., None, :]


def sparsified(weights: Tensor, share: float) -> Tensor:
    """Set all but the largest `share` of each head's weights [B, heads, N, N] to zero; rows then sum to less than 1."""
    cut = int(weights.shape[-1] ** 2 * (1 - share))
    if cut < 1:
        return weights
    lowest = weights.flatten(2).kthvalue(cut, dim=-1).values[..., None, None]
    return weights.where(weights >= lowest, 0)


def _diagonal(weights: Tensor) -> Tensor:
    return weights.diagonal(dim1=-2, dim2=-1)


def _received(weights: Tensor) -> Tensor:
    return weights.sum(-2)


def _mean(per_head: Tensor) -> Tensor:
    return per_head.mean(1)


def _max(per_head: Tensor) -> Tensor:
    return per_head.amax(1)


def _difference(weights: Tensor, prefix: int, fused: Callable[[Tensor], Tensor]) -> Tensor:
    """Score a token by how little the rows of other patches point where its own does."""
    rows = fused(weights[:, :, prefix:])
    rows = rows / rows.norm(dim=-1, keepdim=True)
    return -(rows @ rows.transpose(-2, -1)).sum(-1)


# Importance [B, N] of patch tokens from the map [B, heads, prefix + N, prefix + N]: how much a token
# attends to itself (it cannot be had from others), and how much others attend to it (section 3.2).
SCORES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "class-mean": lambda w, p: _mean(w[:, :, 0, p:]),
    "class-max": lambda w, p: _max(w[:, :, 0, p:]),
    "received-mean": lambda w, p: _mean(_received(w)[..., p:]),
    "received-max": lambda w, p: _max(_received(w)[..., p:]),
    "diagonal-mean": lambda w, p: _mean(_diagonal(w)[..., p:]),
    "diagonal-max": lambda w, p: _max(_diagonal(w)[..., p:]),
    "mixed-mean": lambda w, p: _mean(_diagonal(w)[..., p:]) * _mean(_received(w)[..., p:]),
    "mixed-max": lambda w, p: _max(_diagonal(w)[..., p:]) * _max(_received(w)[..., p:]),
    "sum-max": lambda w, p: _max(_diagonal(w)[..., p:]) + _max(_received(w)[..., p:]),
    "difference-mean": lambda w, p: _difference(w, p, _mean),
    "difference-max": lambda w, p: _difference(w, p, _max),
}


class GTPBlock(nn.Module):
    """A transformer block that removes `propagate` patch tokens between its attention and its MLP."""

    def __init__(self, block: Block, propagate: int, config: GTPConfig) -> None:
        super().__init__()
        self.block = block
        self.propagate = propagate
        self.config = config

    def forward(self, tokens: Tokens) -> Tokens:
        """Map N patch tokens to N - `propagate` (and one more where their mean is kept)."""
        block, scales = self.block, tokens.scales
        bias = None if scales is None else scales.log()[:, None, None]
        weights, values = attention_map(block.attn, block.norm1(tokens.x), bias)
        weights = sparsified(weights, self.config.attention_share)
        x = tokens.x + block.drop_path1(block.ls1(attended(block.attn, weights, values)))
        tokens = Tokens(x, tokens.graph, scales, tokens.positions, tokens.prefix)
        if self.propagate:
            tokens = self._propagated(tokens, weights)
        x = tokens.x + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens.x))))
        return Tokens(x, tokens.graph, tokens.scales, tokens.positions, tokens.prefix)

    def _propagated(self, tokens: Tokens, weights: Tensor) -> Tokens:
        if self.config.selection == "random":
            scores = torch.rand(tokens.positions.shape, device=weights.device)
        else:
            scores = SCORES[self.config.selection](weights, tokens.prefix)
        order = scores.argsort(dim=1, descending=True)
        kept, removed = order.split((order.shape[1] - self.propagate, self.propagate), 1)
        return propagated(tokens, kept, removed, self.config.propagation, self.config.alpha)


def propagated(
    tokens: Tokens, kept: Tensor, removed: Tensor, propagation: Propagation, alpha: float
) -> Tokens:
    """Remove patch tokens and give what `propagation` says to those that stay (section 3.3).

    `kept` [B, K] and `removed` [B, P] number patch tokens; the result has them in the order of `kept`.
    """
    first, patches = tokens.x.split((tokens.prefix, tokens.x.shape[1] - tokens.prefix), 1)
    stay, leave = _rows(patches, kept), _rows(patches, removed)
    graph, scales = tokens.graph, tokens.scales
    positions = tokens.positions.gather(1, kept)
    if propagation == "mean":
        stay = torch.cat((stay, leave.mean(1, keepdim=True)), 1)
        positions = torch.cat((positions, positions.new_full((len(positions), 1), -1)), 1)
    if propagation == "graph":
        assert graph is not None
        rows = _rows(graph, kept)  # B, K, N
        graph, links = (
            rows.gather(2, index[:, None].expand(-1, rows.shape[1], -1))
            for index in (kept, removed)
        )
        stay = stay + alpha * links @ leave
        if scales is not None:
            own = scales[:, tokens.prefix :]
            received = links @ own.gather(1, removed)[..., None]  # B, K, 1
            own = own.gather(1, kept) + alpha * received.squeeze(-1)
            scales = torch.cat((scales[:, : tokens.prefix], own), 1)
    return Tokens(torch.cat((first, stay), 1), graph, scales, positions, tokens.prefix)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Return rows `index` [B, K] of `table` [B, N, C], [B, K, C]."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))


class GTPVisionTransformer(nn.Module):
    """A loaded vision transformer of timm with fewer patch tokens in every block. Maps [B, 3, H, W] to logits.

    The network's modules are shared, not copied. Raises ValueError where blocks remove more patches
    than there are, where the selection wants a class token that the network lacks, or where the
    network has other blocks than timm's standard ones.
    """

    spatial: Tensor

    def __init__(self, network: VisionTransformer, config: GTPConfig) -> None:
        super().__init__()
        counts = config.propagate
        if isinstance(counts, int):
            counts = (counts,) * len(network.blocks)
        if len(counts) != len(network.blocks):
            raise ValueError(f"{len(counts)} numbers of tokens for {len(network.blocks)} blocks")
        patches = network.patch_embed.num_patches
        added = 1 if config.propagation == "mean" else 0
        if min(counts) < 0 or sum(c - added for c in counts if c) >= patches:
            raise ValueError(f"propagate {config.propagate}: the network has {patches} patches")
        if any(type(block) is not Block or block.attn.gate is not None for block in network.blocks):
            raise ValueError("the network's blocks are not those of a plain vision transformer")
        if config.selection.startswith("class") and not network.num_prefix_tokens:
            raise ValueError(f"selection {config.selection!r}: the network has no class token")
        self.network = network
        self.config = config
        self.blocks = nn.ModuleList(
            GTPBlock(block, count, config)
            for block, count in zip(network.blocks, counts, strict=True)
        )
        self.register_buffer(
            "spatial", spatial_graph(*network.patch_embed.grid_size), persistent=False
        )

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.embed(image)
        for block in self.blocks:
            tokens = block(tokens)
        return self.network.forward_head(self.network.norm(tokens.x))

    def embed(self, image: Tensor) -> Tokens:
        """Return what the first block is given: all patches, their graph, and scales of 1."""
        network, prefix = self.network, self.network.num_prefix_tokens
        x = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(image))))
        batch, patches = x.shape[0], x.shape[1] - prefix
        return Tokens(
            x=x,
            graph=self._graph(x[:, prefix:]) if self.config.propagation == "graph" else None,
            scales=x.new_ones(x.shape[:2]) if self.config.token_scales else None,
            positions=torch.arange(patches, device=x.device).expand(batch, -1),
            prefix=prefix,
        )

    def _graph(self, patches: Tensor) -> Tensor:
        graph = self.spatial.expand(len(patches), -1, -1)
        if self.config.graph != "spatial":
            # The released code counts one neighbour more where there is no class token.
            extra = 0 if self.network.num_prefix_tokens else 1
            semantic = semantic_graph(patches, self.config.neighbours + extra)
            graph = semantic if self.config.graph == "semantic" else graph.maximum(semantic)
        return normalised(graph)
