"""LaVin-DiT: "LaVin-DiT: Large Vision Diffusion Transformer" (CVPR 2025).

https://arxiv.org/abs/2411.11505; code: DerrickWang005/LaVin-DiT, which states no licence: facts of it are
used here (names, shapes, the times of the steps), none of its lines. Weights on the Hugging Face Hub under the same
name, tagged MIT.

A vision task is stated by example: pairs of an input and its answer, then a query; a flow-matching transformer
paints the query's answer as a latent. What differs from a plain diffusion transformer:

* examples and answer are two streams of tokens with weights and modulation of their own, which attend to
  each other jointly, in groups of queries that share a key and value head (section 3.3);
* positions are rotary in three axes, the first of which counts the pictures (section 3.3);
* a root-mean-square norm stands before and after each sub-layer, and there are no shifts.

Names and shapes of the state dict are those of the authors' `LaVinDiT` class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_RMS_EPS = 1e-6
_LAYER_NORM_EPS = 1e-5
_TIME_FREQUENCIES = 256
_BASE = 10000.0

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [N, head dim] of the tokens' positions."""


@dataclass(frozen=True)
class LaVinDiTConfig:
    """Sizes under the authors' argument names; the defaults are those of the released network of 3.4 billion parameters.

    `kv_group` query heads share one key and value head.
    """

    patch_size: tuple[int, int] = (2, 2)
    in_channels: int = 16
    hidden_size: int = 2304
    depth: int = 22
    num_heads: int = 32
    kv_group: int = 4

    def __post_init__(self) -> None:
        """Raise ValueError where widths and heads do not divide."""
        if self.hidden_size % self.num_heads or self.head_dim % 6:
            raise ValueError(
                f"{self.hidden_size} channels are not {self.num_heads} heads of a multiple of 6 channels"
            )
        if self.num_heads % self.kv_group:
            raise ValueError(f"{self.num_heads} heads are not groups of {self.kv_group}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one token of a latent."""
        return math.prod(self.patch_size) * self.in_channels


def rotation(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Rotation:
    """Return the rotation of the tokens of `grid` (pictures, rows, columns), in that order.

    A third of a head turns with each axis; in it, channel i pairs with the one half a third further on.
    """
    part = head_dim // 3
    frequencies = _BASE ** -(torch.arange(0, part, 2, device=device).float() / part)
    axes = [torch.arange(size, device=device).float() for size in grid]
    angles = [
        torch.outer(positions.flatten(), frequencies).repeat(1, 2)
        for positions in torch.meshgrid(*axes, indexing="ij")
    ]
    joined = torch.cat(angles, dim=1)
    return joined.cos(), joined.sin()


def _rotated(x: Tensor, by: Rotation) -> Tensor:
    """Turn queries or keys [B, N, heads, head dim]."""
    cosine, sine = (part.unsqueeze(1) for part in by)
    wide = x.float()
    first, second = wide.unflatten(-1, (3, 2, -1)).unbind(-2)
    turned = torch.stack([-second, first], dim=-2).flatten(-3)
    return (wide * cosine + turned * sine).to(x.dtype)


class JointAttention(nn.Module):
    """Attention over both streams together, each [B, N, dim], with projections of their own."""

    def __init__(self, config: LaVinDiTConfig) -> None:
        super().__init__()
        dim, self.head_dim = config.hidden_size, config.head_dim
        narrow = dim // config.kv_group
        for stream in ("cond", "x"):
            self.add_module(f"{stream}_q", nn.Linear(dim, dim, bias=False))
            self.add_module(f"{stream}_k", nn.Linear(dim, narrow, bias=False))
            self.add_module(f"{stream}_v", nn.Linear(dim, narrow, bias=False))
            self.add_module(f"{stream}_qnorm", nn.RMSNorm(dim, eps=_RMS_EPS))
            self.add_module(f"{stream}_knorm", nn.RMSNorm(narrow, eps=_RMS_EPS))
            self.add_module(f"{stream}_proj", nn.Linear(dim, dim, bias=False))

    def forward(self, cond: Tensor, x: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        parts = zip(self._projected("cond", cond), self._projected("x", x), strict=True)
        query, key, value = (
            torch.cat(part, dim=1).unflatten(-1, (-1, self.head_dim)) for part in parts
        )
        mixed = F.scaled_dot_product_attention(
            _rotated(query, turn).transpose(1, 2),
            _rotated(key, turn).transpose(1, 2),
            value.transpose(1, 2),
            enable_gqa=True,
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        known = cond.shape[1]
        return self.cond_proj(mixed[:, :known]), self.x_proj(mixed[:, known:])

    def _projected(self, stream: str, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def layer(name: str) -> nn.Module:
            return self.get_submodule(f"{stream}_{name}")

        # The norms span all heads, as the projections do.
        return (
            layer("qnorm")(layer("q")(tokens)),
            layer("knorm")(layer("k")(tokens)),
            layer("v")(tokens),
        )


class SwiGLU(nn.Module):
    """Gated feed-forward, [..., dim] to [..., dim]; its width is a multiple of 64, about 8/3 of `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = dim * 8 // (3 * 64) * 64
        self.gate_proj = nn.Linear(dim, width, bias=False)
        self.up_proj = nn.Linear(dim, width, bias=False)
        self.down_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=_RMS_EPS)


def _modulation(dim: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, parts * dim))


class Block(nn.Module):
    """Joint attention, then a feed-forward of each stream; both scaled and gated by the stream's time [B, dim]."""

    def __init__(self, config: LaVinDiTConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.joint_attn = JointAttention(config)
        self.cond_mlp = SwiGLU(dim)
        self.x_mlp = SwiGLU(dim)
        self.cond_modulation = _modulation(dim, 4)
        self.x_modulation = _modulation(dim, 4)

    def forward(
        self, cond: Tensor, x: Tensor, times: tuple[Tensor, Tensor], turn: Rotation
    ) -> tuple[Tensor, Tensor]:
        cond_scale, cond_gate, cond_mlp_scale, cond_mlp_gate = (
            self.cond_modulation(times[0]).unsqueeze(1).chunk(4, dim=-1)
        )
        scale, gate, mlp_scale, mlp_gate = self.x_modulation(times[1]).unsqueeze(1).chunk(4, dim=-1)
        cond_mixed, mixed = self.joint_attn(
            (1 + cond_scale) * _normed(cond), (1 + scale) * _normed(x), turn
        )
        cond = cond + cond_gate.tanh() * _normed(cond_mixed)
        x = x + gate.tanh() * _normed(mixed)
        cond_fed = self.cond_mlp((1 + cond_mlp_scale) * _normed(cond))
        cond = cond + cond_mlp_gate.tanh() * _normed(cond_fed)
        fed = self.x_mlp((1 + mlp_scale) * _normed(x))
        return cond, x + mlp_gate.tanh() * _normed(fed)


class TimeEmbedder(nn.Module):
    """Times [B] in 0..1, not scaled up, to vectors [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, time: Tensor) -> Tensor:
        half = _TIME_FREQUENCIES // 2
        frequencies = _BASE ** -(torch.arange(half, device=time.device).float() / half)
        angles = torch.outer(time.float(), frequencies)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class FinalLayer(nn.Module):
    """Tokens [B, N, dim] and their time [B, dim] to patches [B, N, patch dim]."""

    def __init__(self, config: LaVinDiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.patch_dim)
        self.adaLN_modulation = _modulation(config.hidden_size, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.linear((1 + self.adaLN_modulation(time).unsqueeze(1)) * _normed(x))


def _embedder(config: LaVinDiTConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.patch_dim, config.hidden_size),
        nn.LayerNorm(config.hidden_size, eps=_LAYER_NORM_EPS),
    )


class LaVinDiT(nn.Module):
    """Predicts the velocity from noise (time 0) to the answer (time 1)."""

    def __init__(self, config: LaVinDiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_size
        self.prompt_embed = nn.Parameter(torch.zeros(1, dim))
        self.answer_embed = nn.Parameter(torch.zeros(1, dim))
        self.cond_embedder = _embedder(config)
        self.x_embedder = _embedder(config)
        self.t_embedder = TimeEmbedder(dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        """Return velocities [B, C, T, H, W].

        `x` [B, C, T, H, W] is the noisy answer at `time` [B] in 0..1; `cond` [B, C, frames, H, W] holds the examples
        and the query, a latent frame each: input, answer, input, answer, ..., query.
        Raises ValueError if H or W is no multiple of the patch.
        """
        down, across = self.config.patch_size
        frames, height, width = x.shape[2:]
        if height % down or width % across:
            raise ValueError(f"latents of {height} x {width} are not patches of {down} x {across}")
        time = self.t_embedder(time)
        times = time + self.prompt_embed, time + self.answer_embed
        grid = (cond.shape[2] + frames, height // down, width // across)
        turn = rotation(grid, self.config.head_dim, x.device)
        known = self.cond_embedder(self._patches(cond))
        tokens = self.x_embedder(self._patches(x))
        for block in self.blocks:
            known, tokens = block(known, tokens, times, turn)
        patches = self.final_layer(tokens, times[1])
        patches = patches.unflatten(1, (frames, *grid[1:])).unflatten(-1, (down, across, -1))
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)

    def _patches(self, latent: Tensor) -> Tensor:
        """Return tokens [B, N, patch dim], frame by frame; in a token, channels vary fastest."""
        down, across = self.config.patch_size
        latent = latent.unflatten(4, (-1, across)).unflatten(3, (-1, down))
        return latent.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(1, 3)
