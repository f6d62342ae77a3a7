"""ViTok-v2: the plain transformer auto-encoder of "Learnings from Scaling Visual Tokenizers" in its public form.

https://arxiv.org/abs/2501.09755 asks what a visual tokenizer gains by scale: the size of the code decides how
well pictures come back, a larger decoder helps, a larger encoder does not. The paper's own network was never
published; this is the first author's later one (Na-VAE/vitok-release), whose code is deterministic (no mean
and variance, no KL) and whose weights are public.

* The encoder is 4 blocks deep, the decoder 24 or 40; both are plain transformers over patches.
* A block is parallel: attention and SwiGLU see one norm's output and share one LayerScale.
* Positions enter by rotation only, row and column each in half of a head, so that any size fits.
* The code is normalised by a LayerNorm without parameters, which bounds it without a loss.

Names and shapes of the state dict are those of the authors' `AE` class, whose `encoder.safetensors` and
`decoder.safetensors` hold one half each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import GluMlp, LayerScale, apply_rot_embed
from torch import Tensor, nn

from models.reconstruction._vitok_patches import Patches

_EPS = 1e-6
_THETA = 10_000.0
# Letter of a size: width, blocks, heads.
_SIZES = {
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "G": (1728, 32, 24),
    "T": (3072, 40, 24),
    "E": (4096, 48, 32),
}
_HALF = re.compile(r"([BLGTE])((?:[dwhm][\d.]+)*)")
_NAME = re.compile(r"([^-/]+)-([^-/]+)/(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class TowerConfig:
    """One half of the auto-encoder; `mlp_factor` is the feed-forward's width over `width`, before rounding."""

    width: int
    depth: int
    heads: int
    mlp_factor: float = 2.67

    @property
    def hidden(self) -> int:
        """The feed-forward's width, rounded to a multiple of 16."""
        return (int(self.mlp_factor * self.width) + 8) // 16 * 16


@dataclass(frozen=True)
class ViTokConfig:
    """Both halves, the side of a patch in pixels and the channels of a token's code."""

    encoder: TowerConfig
    decoder: TowerConfig
    patch: int
    channels: int

    @classmethod
    def parse(cls, name: str) -> ViTokConfig:
        """Read the authors' `encoder-decoder/temporal x spatial x channels`, such as `Ld4-Ld24/1x16x64`.

        Raises ValueError if it is no such name, or one of a network for video.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r} is no name such as 'Ld4-Ld24/1x16x64'")
        temporal, patch, channels = (int(found[i]) for i in (3, 4, 5))
        if temporal != 1:
            raise ValueError(
                f"{name!r} joins {temporal} frames; the public network is for pictures"
            )
        return cls(_tower(found[1]), _tower(found[2]), patch, channels)


def _tower(name: str) -> TowerConfig:
    found = _HALF.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{name!r} is no size such as 'Ld4': a letter of {''.join(_SIZES)}, then dN, wN, hN or mN"
        )
    width, depth, heads = _SIZES[found[1]]
    given = dict(re.findall(r"([dwhm])([\d.]+)", found[2]))
    return TowerConfig(
        int(given.get("w", width)),
        int(given.get("d", depth)),
        int(given.get("h", heads)),
        float(given.get("m", TowerConfig.mlp_factor)),
    )


class Rotation:
    """Turns queries and keys [B, heads, N, head_dim] by their patch's row and column.

    The first half of a head is turned by the row, the second by the column; neighbouring elements
    are a pair.
    """

    def __init__(self, patches: Patches, head_dim: int) -> None:
        steps = torch.arange(head_dim // 4, device=patches.tokens.device, dtype=torch.float32)
        frequencies = _THETA ** (-2 * steps / (head_dim / 2))
        angles = [
            place.float()[..., None] * frequencies for place in (patches.rows, patches.columns)
        ]
        pairs = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)[:, None]  # B, 1, N, head_dim
        self.sines, self.cosines = pairs.sin(), pairs.cos()

    def __call__(self, x: Tensor) -> Tensor:
        return apply_rot_embed(x, self.sines, self.cosines)


class Attention(nn.Module):
    """Self-attention of tokens [B, N, width] with normalised, rotated queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.RMSNorm(width // heads, eps=_EPS)
        self.norm_k = nn.RMSNorm(width // heads, eps=_EPS)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, seen: Tensor | None) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotation(self.norm_q(q)), rotation(self.norm_k(k))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and SwiGLU side by side, behind one norm and one LayerScale."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, eps=_EPS)
        self.attn = Attention(config.width, config.heads)
        self.ffn = GluMlp(config.width, 2 * config.hidden, act_layer=nn.SiLU, bias=False)
        self.layer_scale = LayerScale(config.width, init_values=1e-4)

    def forward(self, x: Tensor, rotation: Rotation, seen: Tensor | None) -> Tensor:
        normed = self.norm1(x)
        return x + self.layer_scale(self.attn(normed, rotation, seen) + self.ffn(normed))


def _run(blocks: nn.ModuleList, config: TowerConfig, x: Tensor, patches: Patches) -> Tensor:
    rotation = Rotation(patches, config.width // config.heads)
    # Unused places are hidden as keys only: what they become themselves is never looked at, and a
    # row of a softmax with nothing to see would be NaN.
    seen = None if bool(patches.used.all()) else patches.used[:, None, None]
    for block in blocks:
        x = block(x, rotation, seen)
    return x


class ViTok(nn.Module):
    """Pictures as patches to codes [B, N, channels] and back.

    Pixels are normalised to -1..1; the code of a token has mean 0 and deviation 1 over its channels.
    """

    def __init__(self, config: ViTokConfig) -> None:
        super().__init__()
        self.config = config
        pixels = 3 * config.patch**2
        encoder, decoder = config.encoder, config.decoder
        self.patch_embed = nn.Linear(pixels, encoder.width)
        self.to_code = nn.Linear(encoder.width, config.channels)
        self.encoder_blocks = nn.ModuleList(Block(encoder) for _ in range(encoder.depth))
        self.decoder_embed = nn.Linear(config.channels, decoder.width)
        self.to_pixels = nn.Linear(decoder.width, pixels)
        self.decoder_blocks = nn.ModuleList(Block(decoder) for _ in range(decoder.depth))

    def encode(self, patches: Patches) -> Patches:
        """Return the same places with codes [B, N, channels], float32, as tokens."""
        x = self.patch_embed(patches.tokens)
        x = self.to_code(_run(self.encoder_blocks, self.config.encoder, x, patches))
        return patches.holding(F.layer_norm(x.float(), x.shape[-1:], eps=_EPS))

    def decode(self, codes: Patches) -> Patches:
        """Return the same places with pixels [B, N, 3 * patch * patch], not limited to -1..1, as tokens."""
        x = self.decoder_embed(codes.tokens)
        return codes.holding(
            self.to_pixels(_run(self.decoder_blocks, self.config.decoder, x, codes))
        )

    def forward(self, patches: Patches) -> Patches:
        return self.decode(self.encode(patches))
