"""TRF-SG2IM: "Transformer-based Image Generation from Scene Graphs" (CVIU 2023).

https://arxiv.org/abs/2303.04634; code: perceivelab/trf-sg2im, GPL-3.0, of which nothing is used here; no weights
were released. Written from the paper.

Three networks in a row. What is particular to them:

* a transformer on the scene graph attends along edges, whose features take part in the scores and change
  with them (after Dwivedi and Bresson 2021); it answers with a box and a class for each node (section 3.2);
* a GPT continues the boxes, written as tokens, with the codes of a picture (section 3.3);
* a VQGAN's decoder paints the codes; it is diffusers' `VQModel`.

Names and shapes of the state dict are those of the authors' classes, under `sgtrf` and `img_trf`, the keys
of their checkpoints, and diffusers' under `vqvae`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import StateDict, unwrapped

if TYPE_CHECKING:
    from diffusers import VQModel

_MOST = 5.0
_EPS = 1e-6


@dataclass(frozen=True)
class GraphConfig:
    """Sizes of the graph transformer under the authors' argument names; the defaults are those for COCO
    (`pos_enc_dim` is 8 for Visual Genome).

    `n_objs` and `n_rels` count the classes of nodes and edges, with those of the whole picture.
    """

    n_objs: int
    n_rels: int
    emb_size: int = 768
    n_heads: int = 12
    n_enc_layers: int = 12
    pos_enc_dim: int = 32


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the transformer over tokens under the authors' argument names; the defaults are the released ones."""

    vocab_size: int = 8192
    block_size: int = 348
    n_layer: int = 24
    n_head: int = 12
    emb_size: int = 1056


@dataclass(frozen=True)
class VQConfig:
    """Sizes of the VQGAN under the authors' argument names (`emb_size` counts the codes)."""

    emb_size: int = 8192
    embed_dim: int = 256
    z_channels: int = 256
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)

    def attends(self, level: int) -> bool:
        """Whether there is attention at a level, of which 0 is the finest."""
        return self.resolution // 2**level in self.attn_resolutions

    @property
    def code_grid(self) -> int:
        """Codes along each side of a picture."""
        return self.resolution // 2 ** (len(self.ch_mult) - 1)


class EdgeAttention(nn.Module):
    """Messages along directed edges: nodes [M, D] and edges [E, D] to what each receives and becomes."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Q = nn.Linear(dim, dim, bias=False)
        self.K = nn.Linear(dim, dim, bias=False)
        self.V = nn.Linear(dim, dim, bias=False)
        self.proj_e = nn.Linear(dim, dim, bias=False)

    def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """`ends` [2, E] are each edge's source and target. A node that no edge enters receives zeros."""
        source, target = ends
        q, k, v, e = (
            layer(x).unflatten(1, (self.heads, -1))
            for layer, x in (
                (self.Q, nodes),
                (self.K, nodes),
                (self.V, nodes),
                (self.proj_e, edges),
            )
        )
        scores = k[source] * q[target] / math.sqrt(q.shape[-1]) * e  # E, heads, head dim
        weights = scores.sum(-1, keepdim=True).clamp(-_MOST, _MOST).exp()
        received = torch.zeros_like(v).index_add(0, target, weights * v[source])
        total = torch.zeros_like(v[..., :1]).index_add(0, target, weights)
        return (received / (total + _EPS)).flatten(1), scores.flatten(1)


class GraphLayer(nn.Module):
    """Attention, then for nodes and edges each: linear, residual, norm, feed-forward, residual, norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = EdgeAttention(dim, heads)
        for kind in ("h", "e"):
            setattr(self, f"O_{kind}", nn.Linear(dim, dim))
            setattr(self, f"batch_norm1_{kind}", nn.BatchNorm1d(dim))
            setattr(self, f"FFN_{kind}_layer1", nn.Linear(dim, 2 * dim))
            setattr(self, f"FFN_{kind}_layer2", nn.Linear(2 * dim, dim))
            setattr(self, f"batch_norm2_{kind}", nn.BatchNorm1d(dim))

    def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        for_nodes, for_edges = self.attention(nodes, edges, ends)
        return self._mixed("h", nodes, for_nodes), self._mixed("e", edges, for_edges)

    def _mixed(self, kind: str, x: Tensor, attended: Tensor) -> Tensor:
        x = getattr(self, f"batch_norm1_{kind}")(x + getattr(self, f"O_{kind}")(attended))
        hidden = F.relu(getattr(self, f"FFN_{kind}_layer1")(x))
        return getattr(self, f"batch_norm2_{kind}")(x + getattr(self, f"FFN_{kind}_layer2")(hidden))


@dataclass(frozen=True)
class Layout:
    """A box (x0, y0, x1, y1; not clamped to the picture's 0 to 1) [M, 4] and class logits [M, n_objs] per node."""

    boxes: Tensor
    logits: Tensor


class GraphTransformer(nn.Module):
    """Scene graphs to layouts. Several graphs are one graph without edges between them."""

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        dim = config.emb_size
        self.embedding_lap_pos_enc = nn.Linear(config.pos_enc_dim, dim)
        self.embedding_h = nn.Embedding(config.n_objs, dim)
        self.embedding_e = nn.Embedding(config.n_rels, dim)
        self.layers = nn.ModuleList(
            GraphLayer(dim, config.n_heads) for _ in range(config.n_enc_layers)
        )
        half, quarter = dim // 2, dim // 4
        self.box_regressor = nn.Sequential(
            nn.Sequential(nn.Linear(dim, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU()),
            nn.Linear(quarter, 4),
            nn.SiLU(),
        )
        # The last activation belongs to it: no logit is far below zero.
        self.class_regressor = nn.Sequential(
            nn.Linear(dim, half), nn.GELU(), nn.Linear(half, config.n_objs), nn.GELU()
        )

    def forward(
        self, objects: Tensor, relations: Tensor, ends: Tensor, positions: Tensor
    ) -> Layout:
        """`objects` [M] and `relations` [E] are classes, `ends` [2, E] the edges' source and target nodes,
        `positions` [M, pos_enc_dim] the nodes' places in the graph."""
        nodes = self.embedding_h(objects) + self.embedding_lap_pos_enc(positions)
        edges = self.embedding_e(relations)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, ends)
        return Layout(self.box_regressor(nodes), self.class_regressor(nodes))


Cache = list[tuple[Tensor, Tensor]]
"""Keys and values [B, heads, T, head dim] of each block for the tokens so far."""


class CausalAttention(nn.Module):
    """Each token attends to itself and those before."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        ahead = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=ahead.tril(k.shape[2] - q.shape[2])
        )
        return self.proj(mixed.transpose(1, 2).flatten(2)), (k, v)


class GPTBlock(nn.Module):
    """Attention and MLP, each after its norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.ln2 = nn.LayerNorm(dim)
        self.attn = CausalAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, present = self.attn(self.ln1(x), past)
        x = x + attended
        return x + self.mlp(self.ln2(x)), present


class GPT(nn.Module):
    """Tokens [B, T] to logits [B, T, vocabulary] of the token after each."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.emb_size)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block_size, config.emb_size))
        self.blocks = nn.ModuleList(
            GPTBlock(config.emb_size, config.n_head) for _ in range(config.n_layer)
        )
        self.ln_f = nn.LayerNorm(config.emb_size)
        self.head = nn.Linear(config.emb_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Return logits, and the cache with which only the tokens that follow need to be given.

        Raises ValueError if there are more tokens than the network has places for.
        """
        start = cache[0][0].shape[2] if cache else 0
        end = start + tokens.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit into {self.config.block_size} places")
        x = self.tok_emb(tokens) + self.pos_emb[:, start:end]
        present: Cache = []
        for i, block in enumerate(self.blocks):
            x, own = block(x, cache[i] if cache else None)
            present.append(own)
        return self.head(self.ln_f(x)), present


def vq_model(config: VQConfig) -> VQModel:
    """Build the VQGAN with random weights."""
    # Takes seconds to import, which only those who build it should spend.
    from diffusers import VQModel

    levels = range(len(config.ch_mult))
    return VQModel(
        in_channels=config.in_channels,
        out_channels=config.out_ch,
        down_block_types=tuple(
            "AttnDownEncoderBlock2D" if config.attends(i) else "DownEncoderBlock2D" for i in levels
        ),
        up_block_types=tuple(
            "AttnUpDecoderBlock2D" if config.attends(i) else "UpDecoderBlock2D"
            for i in reversed(levels)
        ),
        block_out_channels=tuple(config.ch * multiplier for multiplier in config.ch_mult),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        sample_size=config.resolution,
        num_vq_embeddings=config.emb_size,
        vq_embed_dim=config.embed_dim,
    )


class TrfSg2Im(nn.Module):
    """The three networks together."""

    def __init__(self, graph: GraphConfig, gpt: GPTConfig, vq: VQConfig) -> None:
        super().__init__()
        self.vq = vq
        self.sgtrf = GraphTransformer(graph)
        self.img_trf = GPT(gpt)
        self.vqvae = vq_model(vq)

    def paint(self, codes: Tensor) -> Tensor:
        """Return pictures [B, 3, H, W], normalised as ImageNet's, of codes [B, h, w]."""
        latents = self.vqvae.quantize.embedding(codes).permute(0, 3, 1, 2)
        return self.vqvae.decoder(self.vqvae.post_quant_conv(latents))


_TO_DIFFUSERS = (
    (r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}."),
    (r"\.mid\.attn_1\.", lambda m: ".mid_block.attentions.0."),
    (r"\.down\.(\d+)\.", lambda m: f".down_blocks.{m[1]}."),
    (r"\.block\.(\d+)\.", lambda m: f".resnets.{m[1]}."),
    (r"\.attn\.(\d+)\.", lambda m: f".attentions.{m[1]}."),
    (r"(attentions\.\d+\.)norm\.", lambda m: f"{m[1]}group_norm."),
    (r"(attentions\.\d+\.)([qkv])\.", lambda m: f"{m[1]}to_{m[2]}."),
    (r"(attentions\.\d+\.)proj_out\.", lambda m: f"{m[1]}to_out.0."),
    (r"\.nin_shortcut\.", lambda m: ".conv_shortcut."),
    (r"\.(down|up)sample\.conv\.", lambda m: f".{m[1]}samplers.0.conv."),
    (r"\.norm_out\.", lambda m: ".conv_norm_out."),
)


def taming_to_diffusers(state: Mapping[str, Tensor]) -> StateDict:
    """Return a VQGAN's state dict under the names of diffusers' `VQModel`, without its training's losses.

    The decoder's levels are counted from the other end, and attention's 1x1 convolutions are matrices.
    """
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    highest = max(
        (int(found[1]) for n in state if (found := re.match(r"decoder\.up\.(\d+)", n))), default=0
    )
    renamed = {}
    for name, value in state.items():
        if not name.startswith(parts):
            continue
        name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{highest - int(m[1])}.", name)
        for pattern, replacement in _TO_DIFFUSERS:
            name = re.sub(pattern, replacement, name)
        in_attention = ".attentions." in name and value.dim() == 4
        renamed[name] = value.flatten(1) if in_attention else value
    return renamed


def released_state(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return this module's entries of one of the authors' two files.

    One holds `sgtrf` and `img_trf`, whose causal masks are left out; the other is a VQGAN's, in `state_dict`.
    """
    if "sgtrf" not in checkpoint:
        return {f"vqvae.{k}": v for k, v in taming_to_diffusers(unwrapped(checkpoint)).items()}
    return {
        f"{part}.{name}": value
        for part in ("sgtrf", "img_trf")
        for name, value in unwrapped(checkpoint[part]).items()
        if not name.endswith("attn.mask")
    }
