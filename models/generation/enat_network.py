"""ENAT: "Rethinking Spatial-temporal Interactions in Token-based Image Synthesis" (NeurIPS 2024).

https://arxiv.org/abs/2411.06959; weights: LeapLabTHU/ENAT, which states no licence. Written from the paper.

A class-conditional transformer that fills in the masked codes of a VQGAN's grid.
What differs from a plain masked transformer:

* visible codes are encoded on their own by most of the blocks; masked ones only pass a few decoder
  blocks that look at the encoded codes (section 3.1);
* features of codes that an earlier step has encoded are projected and used again, so that a
  step's encoder computes only what was revealed since (section 3.2);
* blocks are modulated by the class alone: there is no time.

Names and shapes of the state dict are those of the authors' `DiT` class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import StateDict, unwrapped

_EPS = 1e-6
_MLP_RATIO = 4


@dataclass(frozen=True)
class ENATConfig:
    """Sizes of the network; the defaults are ENAT-L's at 256 pixels (32 is its latent size at 512).

    `latent_size` is the side of the square grid of codes.
    """

    latent_size: int = 16
    embed_dim: int = 1024
    num_heads: int = 16
    encoder_depth: int = 22
    decoder_depth: int = 2
    codebook_size: int = 1024
    num_classes: int = 1000


@dataclass(frozen=True)
class Reusable:
    """What a step leaves to the next: features [B, L, dim] in raster order, and where ids were masked [B, L]."""

    features: Tensor
    masked: Tensor


class Mlp(nn.Module):
    """Two linear layers around a tanh-approximated GELU, [..., dim] to [..., dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, _MLP_RATIO * dim)
        self.fc2 = nn.Linear(_MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Attention(nn.Module):
    """Attention from own tokens [B, N, dim] to those of a context [B, M, dim] and to themselves.

    The context's keys and values come from one layer (`kv.A`), the own tokens' from another (`kv.B`).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.ModuleDict({"A": nn.Linear(dim, 2 * dim), "B": nn.Linear(dim, 2 * dim)})
        self.proj = nn.Linear(dim, dim)

    def forward(self, own: Tensor, context: Tensor | None) -> Tensor:
        pairs = self.kv["B"](own)
        if context is not None:
            pairs = torch.cat([self.kv["A"](context), pairs], dim=1)
        keys, values = (self._split(part) for part in pairs.chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(self._split(self.q(own)), keys, values)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # B, heads, tokens, head dim


class Block(nn.Module):
    """Attention and MLP on own tokens, modulated and gated by the condition [B, dim]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads)
        self.mlp = Mlp(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 8 * dim))

    def forward(self, x: Tensor, condition: Tensor, context: Tensor | None) -> Tensor:
        modulation = self.adaLN_modulation(condition).unsqueeze(1).chunk(8, dim=-1)
        own, other, gate, mlp, mlp_gate = (
            modulation[:2],
            modulation[2:4],
            modulation[4],
            modulation[5:7],
            modulation[7],
        )
        if context is not None:
            context = _modulated(context, *other)
        x = x + gate * self.attn(_modulated(x, *own), context)
        return x + mlp_gate * self.mlp(_modulated(x, *mlp))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS) * (1 + scale) + shift


class TokenEmbedder(nn.Module):
    """Ids [B, L] to tokens [B, L, dim]; the last word is the mask."""

    def __init__(self, config: ENATConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.codebook_size + 1, config.embed_dim)
        self.position_embeddings = nn.Embedding(config.latent_size**2, config.embed_dim)
        self.LayerNorm = nn.LayerNorm(config.embed_dim, eps=_EPS)
        self.dropout = nn.Dropout(0.1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word_embeddings(ids) + self.position_embeddings.weight
        return self.dropout(self.LayerNorm(x))


class ClassEmbedder(nn.Module):
    """Labels [B] to conditions [B, dim]; the last row stands for no class."""

    def __init__(self, config: ENATConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.embed_dim)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class PreviousProjection(nn.Module):
    """Prepares an earlier step's features [B, N, dim] for this step."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.mlp(self.norm(features))


class CodeHead(nn.Module):
    """Features [B, L, dim] to logits [B, L, words], by likeness to the words' embeddings [words, dim]."""

    def __init__(self, dim: int, words: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)
        self.ln = nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(1, 1, words))

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        return self.ln(F.gelu(self.fc(features))) @ words.T + self.bias


class ENAT(nn.Module):
    """Masked codes of a grid, and classes, to logits of the codes.

    The released checkpoints hold `prev_embedder`, which nothing uses: `released_state` drops it.
    """

    def __init__(self, config: ENATConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_id = config.codebook_size
        self.no_class = config.num_classes
        dim = config.embed_dim
        self.x_embedder = TokenEmbedder(config)
        self.y_embedder = ClassEmbedder(config)
        self.prev_proj = PreviousProjection(dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads) for _ in range(config.encoder_depth + config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.mlm_layer = CodeHead(dim, config.codebook_size + 1)

    def forward(
        self, ids: Tensor, labels: Tensor, previous: Reusable | None = None
    ) -> tuple[Tensor, Reusable]:
        """Return logits [B, L, codes] and what the next step may reuse.

        `ids` [B, L] are codes or `mask_id`, with as many masked in every sample; `labels` [B] are
        classes or `no_class`. With `previous`, the result for ids of which these reveal more, only codes
        revealed since pass the encoder. Raises ValueError where samples differ in the number of masked ids.
        """
        masked = ids == self.mask_id
        tokens, condition = self.x_embedder(ids), self.y_embedder(labels)
        reused, earlier = None, torch.zeros_like(masked)
        if previous is not None:
            earlier = ~previous.masked
            if earlier.any():
                reused = self.prev_proj(_gathered(previous.features, _places(earlier)))
        fresh, hidden = _places(~masked & ~earlier), _places(masked)

        encoded = _gathered(tokens, fresh)
        if fresh.shape[1]:
            for block in self.blocks[: self.config.encoder_depth]:
                encoded = block(encoded, condition, reused)
        places = fresh
        if reused is not None:
            encoded = torch.cat([reused, encoded], dim=1)
            places = torch.cat([_places(earlier), fresh], dim=1)

        decoded = _gathered(tokens, hidden)
        if hidden.shape[1]:
            context = encoded if encoded.shape[1] else None
            for block in self.blocks[self.config.encoder_depth :]:
                decoded = block(decoded, condition, context)

        everywhere = torch.cat([places, hidden], dim=1).unsqueeze(-1).expand_as(tokens)
        features = torch.empty_like(tokens).scatter(
            1, everywhere, torch.cat([encoded, decoded], dim=1)
        )
        words = self.x_embedder.word_embeddings.weight
        logits = self.mlm_layer(self.norm(features), words)[..., : self.mask_id]
        return logits, Reusable(features, masked)


def _places(chosen: Tensor) -> Tensor:
    """Return the columns where [B, L] is true, [B, N]."""
    counts = chosen.sum(1)
    if bool((counts != counts[0]).any()):
        raise ValueError("all samples of a batch must have the same number of masked codes")
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def _gathered(tokens: Tensor, places: Tensor) -> Tensor:
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def released_state(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the state dict of `ENAT` in a checkpoint of the authors, bare or wrapped."""
    return {k: v for k, v in unwrapped(checkpoint).items() if not k.startswith("prev_embedder.")}
