"""NViST: new views of a scene from one photograph (https://arxiv.org/abs/2312.08568; wbjang/nvist_official, MIT).

A ViT that was pre-trained as a masked auto-encoder reads the picture; a transformer turns its tokens, in one pass, into a
radiance field of three planes and three vectors; rays through the field are rendered
(`models/views/_nvist_renderer.py`). The field is made once and seen from any side.

The decoder does not know how large the scene is: the distance of the camera and its focal length
modulate every block, as time does in a diffusion transformer (section 3.3 of the paper).

Names and shapes of the state dict are those of the authors' `Model`, less what it never reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Mlp, build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.architecture import StateDict, unwrapped
from models.views._nvist_renderer import Field, Rendered, Renderer

_EPS = 1e-6
# Left over in published checkpoints from the auto-encoder, and norms of blocks that look at themselves only.
_UNREAD = re.compile(
    r"encoder\.(mask_token|decoder_pos_embed|norm\..*)|decoder\.blocks\.\d*[13579]\.norm_[kv]\..*"
)


@dataclass(frozen=True)
class NViSTConfig:
    """Sizes; the defaults are the paper's network.

    `image_size` is (height, width); `resolution` that of the field, of which tokens hold `field_patch`
    squared; of its `density_dim + colour_dim` channels the first are the density's. `near` and `far` bound the depth
    along rays; they come from the training set and are in no checkpoint. `box` is half the side of the scene.
    """

    image_size: tuple[int, int] = (160, 90)
    patch_size: int = 5
    dim: int = 768
    depth: int = 12
    heads: int = 12
    decoder_dim: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    resolution: int = 48
    field_patch: int = 3
    density_dim: int = 8
    colour_dim: int = 24
    hidden_dim: int = 64
    camera_frequencies: int = 4
    direction_frequencies: int = 4
    samples: int = 48
    near: float = 0.1
    far: float = 2.0
    box: tuple[tuple[float, float, float], tuple[float, float, float]] = (
        (-0.8, -0.8, -0.8),
        (0.8, 0.8, 0.8),
    )

    @property
    def channels(self) -> int:
        return self.density_dim + self.colour_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the picture's patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


def _table(rows: int, columns: int, dim: int) -> nn.Parameter:
    """Return a fixed table of sines and cosines [1, 1 + rows * columns, dim], zero for the first token."""
    places = build_sincos2d_pos_embed([rows, columns], dim)
    return nn.Parameter(F.pad(places, (0, 0, 1, 0))[None], requires_grad=False)


def encoder(config: NViSTConfig) -> VisionTransformer:
    """Return the ViT from pictures [B, 3, H, W] to the class's and all patches' tokens, without a final norm."""
    vit = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=0,
        global_pool="",
        final_norm=False,
    )
    vit.pos_embed = _table(*config.grid, config.dim)
    return vit


class Attention(nn.Module):
    """Attention with separate projections of queries, keys and values, all [B, N, dim]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.q(queries), self.k(keys), self.v(values))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A block modulated by the camera; every second one, from the first, looks at the picture, others at the field."""

    def __init__(self, dim: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=_EPS, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.attn = Attention(dim, heads)
        self.mlp = Mlp(dim, 4 * dim)
        self.cross = cross
        if cross:
            self.norm_k = nn.LayerNorm(dim, eps=_EPS)
            self.norm_v = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, x: Tensor, picture: Tensor, camera: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(camera).chunk(
            6, dim=-1
        )
        y = self.norm(x) * (1 + scale) + shift
        keys, values = (self.norm_k(picture), self.norm_v(picture)) if self.cross else (y, y)
        x = x + gate * self.attn(y, keys, values)
        return x + mlp_gate * self.mlp(self.norm(x) * (1 + mlp_scale) + mlp_shift)


def _activated_norm(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim, eps=_EPS), nn.GELU())


class Decoder(nn.Module):
    """Tokens of the picture and the camera to the field."""

    def __init__(self, config: NViSTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.decoder_dim, config.field_patch
        side = config.resolution // patch
        self.side = side
        # The authors' table is that of a grid one column wider, in which the vectors' tokens would be the last
        # column; the tokens stand behind all others instead, so that places do not match the grid.
        self.decoder_pos_embed = _table(3 * side, side + 1, dim)
        rows, columns = config.grid
        self.encoded_patches_pos_embed = nn.Parameter(1e-2 * torch.randn(1, rows * columns, dim))
        self.output_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.camera_params_embed = nn.Sequential(
            nn.Linear(2 + 4 * config.camera_frequencies, dim), nn.ReLU(), nn.Linear(dim, dim)
        )
        self.blocks = nn.ModuleList(
            Block(dim, config.decoder_heads, cross=i % 2 == 0) for i in range(config.decoder_depth)
        )
        self.decoder_out_norm = _activated_norm(dim)
        self.decoder_vector_norm = _activated_norm(dim)
        self.decoder_vector_pred = nn.ModuleList(
            nn.Linear(dim, patch * config.channels) for _ in range(3)
        )
        self.decoder_pred = nn.ModuleList(
            nn.Linear(dim, patch * patch * config.channels) for _ in range(3)
        )

    def forward(self, tokens: Tensor, camera: Tensor) -> Field:
        """Return the field of pictures' tokens [B, 1 + patches, dim] and of cameras [B, 2]."""
        picture = tokens[:, 1:] + self.encoded_patches_pos_embed
        made = 3 * self.side * (self.side + 1)
        x = torch.cat((tokens[:, :1], self.output_token.expand(len(tokens), made, -1)), dim=1)
        x = x + self.decoder_pos_embed
        camera = self.camera_params_embed(self._encoded(camera))[:, None]
        for block in self.blocks:
            x = block(x, picture, camera)
        planes, vectors = x[:, 1:].split([3 * self.side**2, 3 * self.side], dim=1)
        return Field(
            self._unpatchified(self.decoder_out_norm(planes), self.decoder_pred, self.side),
            self._unpatchified(self.decoder_vector_norm(vectors), self.decoder_vector_pred, 1),
        )

    def _encoded(self, camera: Tensor) -> Tensor:
        octaves = 2.0 ** torch.arange(self.config.camera_frequencies, device=camera.device)
        angles = (camera[..., None] * octaves * math.pi).flatten(1)
        return torch.cat((camera, angles.sin(), angles.cos()), dim=1)

    def _unpatchified(self, tokens: Tensor, heads: nn.ModuleList, columns: int) -> Tensor:
        """Return [3, B, channels, rows, columns] of three parts' tokens, each part with its own head."""
        parts = [head(x) for head, x in zip(heads, tokens.chunk(3, dim=1), strict=True)]
        patch, channels = self.config.field_patch, self.config.channels
        grid = torch.stack(parts).unflatten(-1, (patch, -1, channels))
        grid = grid.unflatten(2, (self.side, columns))  # 3, B, h, w, rows, columns, channels
        return grid.permute(0, 1, 6, 2, 4, 3, 5).flatten(5).flatten(3, 4)


class NViST(nn.Module):
    """Pictures [B, 3, H, W] with values in 0..1 and their cameras to fields; fields and rays to colours.

    A camera [B, 2] is its distance from the scene's middle and its focal length over the picture's height.
    """

    def __init__(self, config: NViSTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder(config)
        self.decoder = Decoder(config)
        self.renderer = Renderer(
            density_dim=config.density_dim,
            colour_dim=config.colour_dim,
            hidden_dim=config.hidden_dim,
            frequencies=config.direction_frequencies,
            samples=config.samples,
            depths=(config.near, config.far),
            box=config.box,
        )
        for name, values in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def field(self, image: Tensor, camera: Tensor) -> Field:
        """Return the field, which is all that later views need."""
        tokens = self.encoder.forward_features((image - self.mean) / self.std)
        return self.decoder(tokens, camera)

    def forward(
        self, image: Tensor, camera: Tensor, origins: Tensor, directions: Tensor
    ) -> Rendered:
        """Render rays [B, R, 3] through the field of pictures."""
        return self.renderer(self.field(image, camera), origins, directions)


def published(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the network's weights in a checkpoint of the authors' training, without what is never read."""
    return {
        name: value for name, value in unwrapped(checkpoint).items() if not _UNREAD.fullmatch(name)
    }
