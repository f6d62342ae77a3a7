"""MicroDiT: "Stretching Each Dollar: Diffusion Training from Scratch on a Micro-Budget" (2024).

https://arxiv.org/abs/2407.15811; code and weights: SonyResearch/micro_diffusion, Apache-2.0.

A diffusion transformer on VAE latents, conditioned on the 77 token states of a CLIP text tower.
What differs from a plain DiT:

* a patch mixer, a few transformer blocks that see every patch, stands before the backbone, so that
  training may drop 75 % of the patches afterwards and still learn from all of them (section 3);
* self-attention and feed-forward widths grow with depth (section 4.1, after OpenELM);
* every second block's feed-forward is a mixture of experts in which the experts choose the tokens
  (Zhou et al. 2022), so that each sample uses every expert equally;
* captions pass one self-attention block, enter by cross-attention, and their mean joins the time.

Names and shapes of the state dict are those of the authors' `DiT` class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FREQUENCIES = 512


@dataclass(frozen=True)
class DiTConfig:
    """Configuration under the authors' argument names; defaults are their constructor's.

    `input_size` is the side of the square latent. The multipliers hold one value a block, or one
    for each of equally long runs of blocks: self-attention's and the feed-forward's width over `dim`.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    dim: int = 1152
    depth: int = 28
    head_dim: int = 64
    multiple_of: int = 256
    caption_channels: int = 1024
    pos_interp_scale: float = 1.0
    norm_eps: float = 1e-6
    depth_init: bool = True
    qkv_multipliers: tuple[float, ...] = (1.0,)
    ffn_multipliers: tuple[float, ...] = (4.0,)
    use_patch_mixer: bool = True
    patch_mixer_depth: int = 4
    patch_mixer_dim: int = 512
    patch_mixer_qkv_ratio: float = 1.0
    patch_mixer_mlp_ratio: float = 1.0
    use_bias: bool = True
    num_experts: int = 8
    expert_capacity: float = 1.0
    experts_every_n: int = 2

    def per_block(self, multipliers: tuple[float, ...]) -> list[float]:
        """Return one multiplier a block. Raises ValueError if the runs are not of equal length."""
        run, rest = divmod(self.depth, len(multipliers))
        if rest:
            raise ValueError(f"{len(multipliers)} multipliers do not divide {self.depth} blocks")
        return [m for m in multipliers for _ in range(run)]


def linspace(start: float, stop: float, count: int) -> tuple[float, ...]:
    """Return `count` evenly spaced multipliers from `start` to `stop`, both included."""
    return tuple(start + (stop - start) * i / (count - 1) for i in range(count))


def published(name: str, **changes: Any) -> DiTConfig:
    """Return the configuration of `MicroDiT_XL_2` or `MicroDiT_Tiny_2`. Raises KeyError."""
    dim, depth, head_dim, mixer_depth, mixer_dim = {
        "MicroDiT_XL_2": (1024, 28, 64, 6, 768),
        "MicroDiT_Tiny_2": (512, 16, 32, 4, 512),
    }[name]
    settings: dict[str, Any] = {
        "dim": dim,
        "depth": depth,
        "head_dim": head_dim,
        "patch_mixer_depth": mixer_depth,
        "patch_mixer_dim": mixer_dim,
        "patch_mixer_mlp_ratio": 4.0,
        "qkv_multipliers": linspace(0.5, 1.0, depth),
        "ffn_multipliers": linspace(0.5, 4.0, depth),
        "use_bias": False,
        "expert_capacity": 2.0,
    }
    return DiTConfig(**(settings | changes))


def _rounded_up(value: int, multiple: int) -> int:
    return multiple * math.ceil(value / multiple)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def _norm(dim: int, eps: float) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=eps, bias=False)


def position_table(dim: int, side: int, scale: float) -> Tensor:
    """Return the 2-D sine and cosine table [side * side, dim], float32.

    The first half of the channels encodes the column and the second the row, each as [sin | cos];
    `scale` 2 spreads the coordinates of a 256-pixel model over a 512-pixel one.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    coordinates = torch.arange(side, dtype=torch.float64) / scale
    angles = coordinates[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis.repeat(side, 1)
    rows = axis.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


class PatchEmbedding(nn.Module):
    """Latent [B, C, S, S] to tokens [B, T, dim], row by row."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            config.in_channels, config.dim, config.patch_size, stride=config.patch_size
        )

    def forward(self, latent: Tensor) -> Tensor:
        return self.proj(latent).flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Noise level [B] (ln(sigma) / 4) to a vector [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )

    def forward(self, noise_level: Tensor) -> Tensor:
        half = TIME_FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=noise_level.device)
        frequencies = torch.exp(-math.log(10000.0) * steps / half)
        angles = noise_level.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class NormedMlp(nn.Module):
    """Two linear layers with the normalisation between activation and the second of them."""

    def __init__(self, in_dim: int, dim: int, eps: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, dim)
        self.norm = _norm(dim, eps)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(x), approximate="tanh")))


class CaptionProjection(nn.Module):
    """Token states of the text tower [B, L, caption_channels] to the network's width."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.y_proj = NormedMlp(config.caption_channels, config.dim, config.norm_eps)

    def forward(self, captions: Tensor) -> Tensor:
        return self.y_proj(captions)


class _Attention(nn.Module):
    """Attention whose queries and keys are normalised over all heads together, without parameters."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.width, self.heads, self.eps = width, heads, eps

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = F.layer_norm(q, (self.width,), eps=self.eps).to(v.dtype)
        k = F.layer_norm(k, (self.width,), eps=self.eps).to(v.dtype)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(_Attention):
    def __init__(self, dim: int, width: int, heads: int, eps: float, bias: bool) -> None:
        super().__init__(width, heads, eps)
        self.qkv = nn.Linear(dim, 3 * width, bias=bias)
        self.proj = nn.Linear(width, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(*self.qkv(x).chunk(3, dim=2)))

    def initialize(self, std: float) -> None:
        nn.init.trunc_normal_(self.qkv.weight, std=0.02)
        nn.init.trunc_normal_(self.proj.weight, std=std)


class CrossAttention(_Attention):
    def __init__(self, dim: int, heads: int, eps: float, bias: bool) -> None:
        super().__init__(dim, heads, eps)
        self.q_linear = nn.Linear(dim, dim, bias=bias)
        self.kv_linear = nn.Linear(dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.kv_linear(context).chunk(2, dim=2)
        return self.proj(self.attend(self.q_linear(x), k, v))

    def initialize(self, std: float) -> None:
        for layer in (self.q_linear, self.kv_linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.trunc_normal_(self.proj.weight, std=std)


class SwiGLU(nn.Module):
    """Gated feed-forward; the hidden width is two thirds of `hidden`, rounded up to `multiple_of`."""

    def __init__(self, dim: int, hidden: int, multiple_of: int, bias: bool) -> None:
        super().__init__()
        width = _rounded_up(int(2 * hidden / 3), multiple_of)
        self.w1 = nn.Linear(dim, width, bias=bias)
        self.w2 = nn.Linear(dim, width, bias=bias)
        self.w3 = nn.Linear(width, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))

    def initialize(self, std: float) -> None:
        nn.init.trunc_normal_(self.w1.weight, std=0.02)
        nn.init.trunc_normal_(self.w2.weight, std=std)
        nn.init.trunc_normal_(self.w3.weight, std=std)


class ExpertChoice(nn.Module):
    """Mixture of experts in which each expert takes its best tokens of every sample.

    Each of E experts takes the int(capacity * T / E) tokens that give it the highest probability; a
    token's output is the probability-weighted sum over the experts that took it, and zero if none did.
    """

    def __init__(
        self, dim: int, hidden: int, multiple_of: int, experts: int, capacity: float
    ) -> None:
        super().__init__()
        width = _rounded_up(hidden, multiple_of)
        self.capacity = capacity
        self.w1 = nn.Parameter(torch.empty(experts, dim, width))
        self.w2 = nn.Parameter(torch.empty(experts, width, dim))
        self.gate = nn.Linear(dim, experts, bias=False)
        nn.init.normal_(self.w1, std=0.02)
        nn.init.normal_(self.w2, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        experts = self.w1.shape[0]
        chosen = int(self.capacity * tokens / experts)
        affinity = self.gate(x).softmax(dim=2).transpose(1, 2)  # B, E, T
        weight, index = affinity.topk(chosen, dim=2)  # B, E, K
        rows = index.reshape(batch, -1, 1).expand(-1, -1, dim)
        taken = x.gather(1, rows).view(batch, experts, chosen, dim)
        hidden = F.gelu(torch.einsum("bekd,edf->bekf", taken, self.w1))
        result = torch.einsum("bekf,efd->bekd", hidden, self.w2) * weight.unsqueeze(3)
        summed = result.new_zeros(batch, tokens, dim)
        return summed.scatter_add(1, rows, result.reshape(batch, -1, dim))

    def initialize(self, std: float) -> None:
        nn.init.trunc_normal_(self.gate.weight, std=0.02)
        nn.init.trunc_normal_(self.w1, std=0.02)
        nn.init.trunc_normal_(self.w2, std=std)


class CaptionBlock(nn.Module):
    """One pre-norm self-attention block over the caption's tokens; padding is attended too."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.norm1 = _norm(dim, eps)
        self.attn = SelfAttention(dim, dim, dim // config.head_dim, eps, config.use_bias)
        self.norm2 = _norm(dim, eps)
        self.mlp = SwiGLU(dim, 4 * dim, config.multiple_of, config.use_bias)

    def forward(self, y: Tensor) -> Tensor:
        y = y + self.attn(self.norm1(y))
        return y + self.mlp(self.norm2(y))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and last modulated and gated."""

    def __init__(
        self, config: DiTConfig, dim: int, qkv_ratio: float, mlp_ratio: float, experts: bool
    ) -> None:
        super().__init__()
        eps, bias = config.norm_eps, config.use_bias
        width = dim
        if qkv_ratio != 1:
            width = _rounded_up(int(dim * qkv_ratio), 2 * config.head_dim)
        hidden = int(dim * mlp_ratio)
        self.norm1 = _norm(dim, eps)
        self.attn = SelfAttention(dim, width, width // config.head_dim, eps, bias)
        self.cross_attn = CrossAttention(dim, dim // config.head_dim, eps, bias)
        self.norm2 = _norm(dim, eps)
        self.norm3 = _norm(dim, eps)
        self.mlp: ExpertChoice | SwiGLU
        if experts:
            self.mlp = ExpertChoice(
                dim, hidden, config.multiple_of, config.num_experts, config.expert_capacity
            )
        else:
            self.mlp = SwiGLU(dim, hidden, config.multiple_of, bias)
        self.adaLN_modulation = nn.Sequential(
            nn.GELU(approximate="tanh"), nn.Linear(config.dim, 6 * dim)
        )

    def forward(self, x: Tensor, context: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(_modulated(self.norm1(x), shift1, scale1))
        x = x + self.cross_attn(self.norm2(x), context)
        return x + gate2.unsqueeze(1) * self.mlp(_modulated(self.norm3(x), shift2, scale2))

    def initialize(self, std: float) -> None:
        self.attn.initialize(std)
        self.cross_attn.initialize(std)
        self.mlp.initialize(std)
        nn.init.zeros_(self.adaLN_modulation[1].weight)


class FinalLayer(nn.Module):
    """Tokens [B, T, dim] to patches [B, T, patch * patch * C], ordered (row, column, channel)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.dim, config.patch_size**2 * config.in_channels)
        self.adaLN_modulation = nn.Sequential(
            nn.GELU(approximate="tanh"), nn.Linear(config.dim, 2 * config.dim)
        )
        self.norm_final = _norm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(_modulated(self.norm_final(x), shift, scale))


@dataclass(frozen=True)
class Conditioning:
    """Captions as the network uses them: `tokens` [B, L, dim] and their pooled vector [B, dim].

    They depend neither on the noise level nor on the latent: computed once, used in every step.
    """

    tokens: Tensor
    pooled: Tensor

    def __getitem__(self, index: Tensor) -> Conditioning:
        return Conditioning(self.tokens[index], self.pooled[index])

    def __add__(self, other: Conditioning) -> Conditioning:
        return Conditioning(
            torch.cat([self.tokens, other.tokens]), torch.cat([self.pooled, other.pooled])
        )

    def __len__(self) -> int:
        return len(self.tokens)


class DiT(nn.Module):
    """The denoising network. It predicts F of the EDM preconditioning (`models/diffusion/edm.py`)."""

    pos_embed: Tensor
    mask_token: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.side = config.input_size // config.patch_size
        self.x_embedder = PatchEmbedding(config)
        self.t_embedder = TimeEmbedding(dim)
        self.register_buffer(
            "pos_embed", position_table(dim, self.side, config.pos_interp_scale)[None]
        )
        self.y_embedder = CaptionProjection(config)
        self.y_emb_preprocess = CaptionBlock(config)
        self.pooled_y_emb_process = NormedMlp(dim, dim, config.norm_eps)
        self.patch_mixer = nn.ModuleList()
        self.patch_mixer_map_xin: nn.Module = nn.Identity()
        self.patch_mixer_map_xout: nn.Module = nn.Identity()
        self.patch_mixer_map_y: nn.Module = nn.Identity()
        if config.use_patch_mixer:
            self._add_patch_mixer(config)
        widths = zip(
            config.per_block(config.qkv_multipliers),
            config.per_block(config.ffn_multipliers),
            strict=True,
        )
        self.blocks = nn.ModuleList(
            Block(config, dim, qkv, ffn, self._has_experts(i) and i < config.depth - 1)
            for i, (qkv, ffn) in enumerate(widths)
        )
        self.register_buffer(
            "mask_token", torch.zeros(1, 1, config.patch_size**2 * config.in_channels)
        )
        self.final_layer = FinalLayer(config)

    def _has_experts(self, index: int) -> bool:
        return (index + 1) % self.config.experts_every_n == 0

    def _add_patch_mixer(self, config: DiTConfig) -> None:
        width = config.patch_mixer_dim
        self.patch_mixer.extend(
            Block(
                config,
                width,
                config.patch_mixer_qkv_ratio,
                config.patch_mixer_mlp_ratio,
                i > 0 and self._has_experts(i),
            )
            for i in range(config.patch_mixer_depth)
        )
        if width != config.dim:

            def mapping(source: int, target: int) -> nn.Sequential:
                return nn.Sequential(
                    _norm(source, config.norm_eps),
                    nn.Linear(source, target, bias=config.use_bias),
                )

            self.patch_mixer_map_xin = mapping(config.dim, width)
            self.patch_mixer_map_xout = mapping(width, config.dim)
            self.patch_mixer_map_y = mapping(config.dim, width)

    def initialize(self) -> None:
        """Draw the starting weights of training: residual branches small, modulation and output zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        for layer in (
            self.t_embedder.mlp[0],
            self.t_embedder.mlp[2],
            self.pooled_y_emb_process.fc1,
            self.pooled_y_emb_process.fc2,
            self.y_embedder.y_proj.fc1,
            self.y_embedder.y_proj.fc2,
        ):
            nn.init.normal_(layer.weight, std=0.02)
        depth = self.config.depth
        for i, block in enumerate(self.blocks):
            block.initialize(0.02 / math.sqrt(2 * (i + 1 if self.config.depth_init else depth)))
        for block in self.patch_mixer:
            block.initialize(0.02 / math.sqrt(2 * depth))
        nn.init.trunc_normal_(self.y_emb_preprocess.attn.qkv.weight, std=0.02)
        nn.init.zeros_(self.y_emb_preprocess.attn.proj.weight)
        nn.init.zeros_(self.y_emb_preprocess.mlp.w3.weight)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def condition(self, captions: Tensor) -> Conditioning:
        """Return the conditioning of caption states [B, L, caption_channels].

        All-zero states stand for "no caption", in training with dropped captions and in guidance.
        """
        tokens = self.y_emb_preprocess(self.y_embedder(captions))
        return Conditioning(tokens, self.pooled_y_emb_process(tokens.mean(dim=1)))

    def forward(
        self,
        latent: Tensor,
        noise_level: Tensor,
        conditioning: Conditioning,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output [B, C, S, S] for a scaled latent of that shape.

        `noise_level` [B] is ln(sigma) / 4. `kept` [B, K], in training only, holds the indices of the
        tokens that go on after the patch mixer; the patches of the others come out as `mask_token`.
        """
        c = self.t_embedder(noise_level) + conditioning.pooled
        x = self.x_embedder(latent) + self.pos_embed
        x = self.patch_mixer_map_xin(x)
        context = self.patch_mixer_map_y(conditioning.tokens)
        for block in self.patch_mixer:
            x = block(x, context, c)
        if kept is not None:
            x = x.gather(1, kept.unsqueeze(2).expand(-1, -1, x.shape[2]))
        x = self.patch_mixer_map_xout(x)
        for block in self.blocks:
            x = block(x, conditioning.tokens, c)
        patches = self.final_layer(x, c)
        if kept is not None:
            rows = kept.unsqueeze(2).expand(-1, -1, patches.shape[2])
            everywhere = self.mask_token.to(patches.dtype).expand(len(latent), self.side**2, -1)
            patches = everywhere.scatter(1, rows, patches)
        return self._unpatchified(patches)

    def _unpatchified(self, patches: Tensor) -> Tensor:
        side, patch, channels = self.side, self.config.patch_size, self.config.in_channels
        grid = patches.view(-1, side, side, patch, patch, channels)  # B, rows, columns, y, x, C
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, side * patch, side * patch)
