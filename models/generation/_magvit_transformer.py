"""MAGVIT's masked transformer: BERT over a prefix and a clip's tokens (https://arxiv.org/abs/2212.05199, section 3.2).

State-dict names are the parameters' paths in the authors' Flax module (google-research/magvit, Apache-2.0);
`models/weights/flax.py` converts its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-12


class Special(IntEnum):
    """Tokens that are no codes; negative, so they count from the end of the vocabulary."""

    MASK = -1
    SEPARATOR = -2
    FULL_GENERATION = -3
    FRAME_PREDICTION = -4
    INTERPOLATION = -5
    OUTPAINTING = -6
    INPAINTING = -7
    PADDING = -15


@dataclass(frozen=True)
class BertConfig:
    """Sizes under the authors' names, and the vocabulary: codes, then classes, then no class, then special tokens.

    Networks for one task have one special token, those for several have 16, and a task's token first
    in the prefix. `num_segments` is 2 where places with a condition's token are marked.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    codebook_size: int = 1024
    num_classes: int = 101
    special_tokens: int = 1
    latent_shape: tuple[int, int, int] = (4, 16, 16)
    num_segments: int = 0
    prefix_length: int = 1

    @property
    def latent_length(self) -> int:
        frames, rows, columns = self.latent_shape
        return frames * rows * columns

    @property
    def vocabulary(self) -> int:
        return self.codebook_size + self.num_classes + 1 + self.special_tokens

    @property
    def positions(self) -> int:
        return self.prefix_length + self.latent_length

    def class_token(self, label: int | None) -> int:
        """Return the token of a class, or of no class. Raises ValueError if there is no such class."""
        if label is None:
            return self.codebook_size + self.num_classes
        if not 0 <= label < self.num_classes:
            raise ValueError(f"class {label}: the network has {self.num_classes}")
        return self.codebook_size + label

    def prefix(self, task: Special, label: int | None) -> tuple[int, ...]:
        """Return the tokens in front of a clip's; networks for one task have no token for it."""
        token = self.class_token(label)
        return (int(task), token) if self.special_tokens > 1 else (token,)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=_EPS)


class BertEmbed(nn.Module):
    """Tokens [B, N] to the sum of their word's, place's and segment's vectors, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocabulary, width)
        self.position_embeddings = nn.Embedding(config.positions, width)
        if config.num_segments:
            self.segment_embeddings = nn.Embedding(config.num_segments, width)
        self.embeddings_ln = _norm(width)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)

    def forward(self, tokens: Tensor, segments: Tensor | None) -> Tensor:
        words = tokens.where(tokens >= 0, tokens + self.word_embeddings.num_embeddings)
        x = self.word_embeddings(words) + self.position_embeddings.weight[: tokens.shape[1]]
        if hasattr(self, "segment_embeddings"):
            segments = torch.zeros_like(tokens) if segments is None else segments
            x = x + self.segment_embeddings(segments)
        return self.embeddings_ln(x)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class BertAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.hidden_size, config.num_heads)
        self.attention_output_ln = _norm(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention_output_ln(self.self_attention(x) + x)


class BertMlp(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.intermediate_output = nn.Linear(config.hidden_size, config.mlp_dim)
        self.layer_output = nn.Linear(config.mlp_dim, config.hidden_size)
        self.layer_output_ln = _norm(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.gelu(self.intermediate_output(x), approximate="tanh")
        return self.layer_output_ln(self.layer_output(wide) + x)


class BertLayer(nn.Module):
    """Self-attention, then an MLP, each added to its input and normalised afterwards."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.BertAttention_0 = BertAttention(config)
        self.BertMlp_0 = BertMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.BertMlp_0(self.BertAttention_0(x))


class VocabularyBias(nn.Module):
    """One number a word."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(words))


class BertMlmLayer(nn.Module):
    """Hidden states [B, N, width] to logits over a vocabulary, against its word vectors [words, width]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.mlm_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.mlm_ln = _norm(config.hidden_size)
        self.mlm_bias = VocabularyBias(config.vocabulary)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        hidden = self.mlm_ln(F.gelu(self.mlm_dense(x), approximate="tanh"))
        return F.linear(hidden, words, self.mlm_bias.bias[: len(words)])


class MaskedTransformer(nn.Module):
    """Predicts a clip's tokens, all at once, from those that are known."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.BertEmbed_0 = BertEmbed(config)
        for i in range(config.num_layers):
            self.add_module(f"BertLayer_{i}", BertLayer(config))
        self.BertMlmLayer_0 = BertMlmLayer(config)

    def forward(self, prefix: Tensor, grid: Tensor, segments: Tensor | None = None) -> Tensor:
        """Return logits [B, t, h, w, codes] for a grid of tokens [B, t, h, w] behind a prefix [B, P].

        `segments` [B, t, h, w] is 1 where a condition's token stands at a place that is not decided, else 0;
        networks without segments ignore it.
        """
        tokens = torch.cat([prefix, grid.flatten(1)], dim=1)
        if segments is not None:
            segments = torch.cat([torch.zeros_like(prefix), segments.flatten(1)], dim=1)
        x = self.BertEmbed_0(tokens, segments)
        for i in range(self.config.num_layers):
            x = self.get_submodule(f"BertLayer_{i}")(x)
        # Only codes can stand in the grid: the rest of the vocabulary is not looked at.
        codes = self.BertEmbed_0.word_embeddings.weight[: self.config.codebook_size]
        logits = self.BertMlmLayer_0(x[:, prefix.shape[1] :], codes)
        return logits.unflatten(1, grid.shape[1:])
