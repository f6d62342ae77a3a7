"""Captions to the token states of a CLIP text tower, as the generators that condition on them need.

The tower is transformers' `CLIPTextModel` with QuickGELU and without an attention mask: the
checkpoints were trained on open_clip's tower, whose padding is not masked and whose states at
padded positions the generators see as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.serving import InvalidInput
from models.uninitialised import Uninitialised

if TYPE_CHECKING:
    from transformers import CLIPTextModel


@dataclass(frozen=True)
class TowerConfig:
    """A CLIP text tower; `tokens` is the length that every caption is padded to."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    vocabulary: int = 49408
    tokens: int = 77
    start: int = 49406
    end: int = 49407
    padding: int = 0

    def build(self) -> CLIPTextModel:
        """Return the tower with random weights."""
        # Takes seconds to import, which only those who load this should spend.
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(
            CLIPTextConfig(
                hidden_size=self.width,
                intermediate_size=4 * self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                vocab_size=self.vocabulary,
                max_position_embeddings=self.tokens,
                bos_token_id=self.start,
                eos_token_id=self.end,
                pad_token_id=self.padding,
                hidden_act="quick_gelu",
                layer_norm_eps=1e-5,
            )
        )


class CaptionTokenizer:
    """Captions to padded token ids. Start, end and padding are put in here, not by the file's own template."""

    def __init__(self, tokenizer: Tokenizer, config: TowerConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def load(cls, path: Path, config: TowerConfig) -> CaptionTokenizer:
        return cls(Tokenizer.from_file(str(path)), config)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return int64 ids [B, tokens].

        Raises InvalidInput for a caption without words, or with more tokens than the tower has places for.
        """
        return torch.tensor([self._row(caption) for caption in captions])

    def _row(self, caption: str) -> list[int]:
        config = self.config
        words = self.tokenizer.encode(caption.strip(), add_special_tokens=False).ids
        room = config.tokens - 2
        if not words:
            raise InvalidInput(f"the prompt is empty; it needs 1 to {room} tokens")
        if len(words) > room:
            raise InvalidInput(
                f"the prompt has {len(words)} tokens; this model takes 1 to {room} tokens"
            )
        row = [config.start, *words, config.end]
        return row + [config.padding] * (config.tokens - len(row))


class TextEncoder(nn.Module):
    """Tokenizer and tower; `encode` gives the states after the final norm, for all tokens."""

    def __init__(self, tower: CLIPTextModel, tokenizer: CaptionTokenizer) -> None:
        super().__init__()
        self.tower = tower
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, config: TowerConfig) -> TextEncoder:
        """Load `text_encoder.safetensors` (strictly) and `tokenizer.json` from a model's folder."""
        with Uninitialised():
            tower = config.build()
        tower.load_state_dict(read_tower(folder / "text_encoder.safetensors"))
        tokenizer = CaptionTokenizer.load(folder / "tokenizer.json", config)
        return cls(tower.float().eval(), tokenizer)

    def forward(self, ids: Tensor) -> Tensor:
        """Return states [B, tokens, width] of token ids [B, tokens]."""
        states: Tensor = self.tower(input_ids=ids).last_hidden_state
        return states

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return states [B, tokens, width] of captions. Raises InvalidInput."""
        return self(self.tokenizer(captions).to(self.tower.device))


def read_tower(path: Path) -> dict[str, Tensor]:
    """Read a text tower under transformers' names, or the one inside an open_clip checkpoint.

    Of a whole CLIP only the text tower's entries are read. Raises KeyError if there is no whole tower.
    """
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if "embeddings.token_embedding.weight" in names:
            return {name: file.get_tensor(name) for name in names}
        prefix = "text." if "text.positional_embedding" in names else ""
        wanted = (f"{prefix}transformer.resblocks.", *(prefix + name for name in _OUTSIDE))
        return from_open_clip(
            {n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(wanted)}
        )


# open_clip's name -> transformers' name, outside and inside the tower's blocks.
_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_open_clip(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an open_clip text tower, without projections, to transformers' names.

    The fused projection of queries, keys and values is split. Raises KeyError for an entry that is
    missing or has no counterpart.
    """
    renamed = {target: tower[source] for source, target in _OUTSIDE.items()}
    for key in tower.keys() - _OUTSIDE.keys():
        _, _, index, name = key.split(".", 3)
        layer = f"encoder.layers.{index}"
        module, _, leaf = name.rpartition(".")
        if leaf.startswith("in_proj_"):
            for projection, part in zip("qkv", tower[key].chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{projection}_proj.{leaf[8:]}"] = part
        else:
            renamed[f"{layer}.{_INSIDE[module]}.{leaf}"] = tower[key]
    return renamed
