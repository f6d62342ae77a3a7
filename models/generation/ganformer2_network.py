"""GANformer, the generator that GANformer2 is built from.

GANformer2: "Compositional Transformers for Scene Generation" (NeurIPS 2021), https://arxiv.org/abs/2111.08960.
GANformer: "Generative Adversarial Transformers" (ICML 2021), https://arxiv.org/abs/2103.01209; code and
weights: dorarad/gansformer, MIT. GANformer2 itself was never released; both of its stages are this network.

StyleGAN2 in which, beside one global latent, a set of local ones each shapes the regions that attend to it.
What differs from StyleGAN2:

* after each convolution, bipartite attention from the image's positions to the local latents scales the
  features (section 3.1 of GANformer);
* its duplex form (section 3.1.2) compares positions with trained centroids of the latents' regions, and not
  with the latents themselves;
* the mapping network has residual layers, before each of which local latents may attend to each other.

Names and shapes of the state dict are those of the authors' PyTorch `Generator` class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import StateDict, unwrapped
from models.layers.stylegan import EqualizedLinear, fir_kernel, leaky, upsampled

_EPS = 1e-8
_MAPPING_LR = 0.01
_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class GANformerConfig:
    """Configuration under the authors' argument names; the defaults are FFHQ's at 256 pixels.

    `k` counts the latents, the last of which is the global one. Attention works at resolutions from
    2 ** `start_res` and below 2 ** `end_res`. CLEVR's has `k` 9, `z_dim` 16, and neither `style` nor
    `mapping_ltnt2ltnt`.
    """

    resolution: int = 256
    k: int = 17
    z_dim: int = 32
    mapping_layers: int = 8
    mapping_ltnt2ltnt: bool = True
    style: bool = True
    norm: Literal["layer", "instance"] | None = "layer"
    integration: Literal["add", "mul", "both"] = "mul"
    kmeans: bool = True
    use_pos: bool = True
    start_res: int = 0
    end_res: int = 8
    channel_base: int = 32768
    channel_max: int = 512

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The blocks' resolutions. Raises ValueError unless the last is a power of two from 8."""
        blocks = int(math.log2(self.resolution)) - 1
        if blocks < 2 or 2 ** (blocks + 1) != self.resolution:
            raise ValueError(f"resolution {self.resolution} is no power of two from 8")
        return tuple(4 * 2**i for i in range(blocks))

    def channels(self, resolution: int) -> int:
        return min(self.channel_base // resolution, self.channel_max)

    def attends(self, resolution: int) -> bool:
        return self.start_res <= math.log2(resolution) < self.end_res


def position_grid(resolution: int, dim: int) -> Tensor:
    """Return the sinusoidal positions [R, R, dim] of coordinates from -1 to 1: sin x, cos x, sin y, cos y."""
    frequencies = 10000.0 ** -(4 * torch.arange(dim // 4) / dim)
    angles = torch.linspace(-1, 1, resolution)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    x = line.expand(resolution, -1, -1)
    return torch.cat([x, x.transpose(0, 1)], dim=-1)


class LatentAttention(nn.Module):
    """Attention from elements [B, N, C] to latents [B, M, D], whose answer scales or shifts the elements."""

    def __init__(
        self,
        dim: int,
        latent_dim: int,
        latents: int,
        *,
        integration: Literal["add", "mul", "both"],
        norm: Literal["layer", "instance"] | None,
        duplex: bool,
    ) -> None:
        super().__init__()
        self.integration, self.norm, self.duplex = integration, norm, duplex
        if duplex:
            self.att_weight = nn.Parameter(torch.ones(1, 1, 2 * dim))
            self.centroids = nn.Parameter(torch.randn(1, 1, latents, 2 * dim))
        # A duplex layer holds trained `to_keys` and `to_pos_map`, but its centroids stand in for the keys.
        self.to_queries = EqualizedLinear(dim, dim)
        self.to_keys = EqualizedLinear(latent_dim, dim)
        self.to_values = EqualizedLinear(latent_dim, dim)
        self.from_pos_map = EqualizedLinear(latent_dim, dim)
        self.to_pos_map = EqualizedLinear(latent_dim, dim)
        self.modulation = EqualizedLinear(dim, 2 * dim if integration == "both" else dim)

    def forward(
        self, x: Tensor, latents: Tensor, places: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the elements [B, N, C] and the attention [B, N, M], which sums to 1 over the latents.

        `places` [N, D] are the elements' positions, `positions` [M, D] the latents'.
        """
        queries = self.to_queries(x)
        shift = torch.zeros_like(queries) if places is None else self.from_pos_map(places)
        if self.duplex:
            elements = torch.cat([queries, shift.expand_as(queries)], dim=-1) * self.att_weight
            scores = elements @ self.centroids[0].transpose(1, 2)
        else:
            keys = self.to_keys(latents)
            if positions is not None:
                keys = keys + self.to_pos_map(positions)
            scores = (queries + shift) @ keys.transpose(1, 2)
        attention = (scores / math.sqrt(x.shape[-1])).softmax(-1)
        answer = self.modulation(attention @ self.to_values(latents))
        return self._integrated(self._normalised(x), answer), attention

    def _normalised(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return x
        axis = 2 if self.norm == "layer" else 1
        if self.integration != "mul":
            x = x - x.mean(axis, keepdim=True)
        if self.integration != "add":
            x = x * (x.square().mean(axis, keepdim=True) + _EPS).rsqrt()
        return x

    def _integrated(self, x: Tensor, answer: Tensor) -> Tensor:
        match self.integration:
            case "add":
                return x + answer
            case "mul":
                return x * (answer + 1)
            case "both":
                scale, shift = answer.chunk(2, dim=-1)
                return x * (scale + 1) + shift


class Bias(nn.Module):
    """The bias of a layer's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(-1, 1, 1)


class StyledConv(nn.Module):
    """Equalised convolution [B, C, H, W] to [B, D, H, W] or, with `up`, [B, D, 2H, 2W].

    With a `style_dim`, a style [B, style_dim] scales the input's channels, where the layer is `modulated`
    (the released networks hold the weights for it also where not); `demodulated` brings the output back
    to unit variance.
    """

    def __init__(
        self,
        inner: int,
        outer: int,
        size: int,
        style_dim: int | None,
        *,
        up: bool = False,
        modulated: bool = True,
        demodulated: bool = True,
    ) -> None:
        super().__init__()
        self.modulated = modulated
        self.demodulated = demodulated
        self.weight = nn.Parameter(torch.randn(outer, inner, size, size))
        self.scale = 1 / math.sqrt(inner * size**2)
        self.affine = None if style_dim is None else EqualizedLinear(style_dim, inner, bias=1)
        self.register_buffer("resample_kernel", fir_kernel() if up else None)

    def convolved(self, x: Tensor, style: Tensor | None) -> Tensor:
        weight = self.weight * self.scale
        if self.affine is None or style is None or not self.modulated:
            return self._convolved(x, weight)
        scales = self.affine(style)
        x = self._convolved(x * scales[:, :, None, None], weight)
        if not self.demodulated:
            return x
        energy = scales.square() @ weight.square().sum((2, 3)).T
        return x * (energy + _EPS).rsqrt()[:, :, None, None]

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        size = weight.shape[-1]
        if self.resample_kernel is None:
            return F.conv2d(x, weight, padding=size // 2)
        kernel = 4 * self.resample_kernel
        if size == 1:
            return upsampled(F.conv2d(x, weight), kernel)
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        smoothing = kernel.flip(0, 1).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, smoothing, padding=1, groups=x.shape[1])

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return self.convolved(x, style)


class Layer(StyledConv):
    """Convolution, attention to the local latents, noise, bias and leaky ReLU; `gain` scales the result."""

    def __init__(
        self,
        config: GANformerConfig,
        inner: int,
        resolution: int,
        *,
        up: bool = False,
        gain: float = 1.0,
    ) -> None:
        channels = config.channels(resolution)
        super().__init__(inner, channels, 3, config.z_dim, up=up, modulated=config.style)
        self.gain = gain
        self.biasAct = Bias(channels)
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.transformer = None
        if config.attends(resolution):
            self.transformer = LatentAttention(
                channels,
                config.z_dim,
                config.k - 1,
                integration=config.integration,
                norm=config.norm,
                duplex=config.kmeans,
            )
            self.register_buffer("grid_pos", position_grid(resolution, config.z_dim))

    def forward(  # type: ignore[override]
        self, x: Tensor, latents: Tensor, positions: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return features [B, C, H, W] and attention [B, k - 1, H, W] (None where the layer has none)."""
        x = self.convolved(x, latents[:, -1])
        attention = None
        if self.transformer is not None:
            shape = x.shape[2:]
            elements, weights = self.transformer(
                x.flatten(2).transpose(1, 2),
                latents[:, :-1],
                self.grid_pos.flatten(0, 1),
                positions,
            )
            x, attention = (t.transpose(1, 2).unflatten(2, shape) for t in (elements, weights))
        if noise is not None:
            x = x + self.noise_strength * noise
        return self.gain * leaky(self.biasAct(x)), attention


class ToRGB(StyledConv):
    """Features [B, C, H, W] to RGB [B, 3, H, W]."""

    def __init__(self, inner: int, style_dim: int, *, modulated: bool) -> None:
        super().__init__(inner, 3, 1, style_dim, modulated=modulated, demodulated=False)
        self.biasAct = Bias(3)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.biasAct(self.convolved(x, style))


class SynthesisBlock(nn.Module):
    """The layers of one resolution; the first block starts from a constant, the last makes the picture."""

    def __init__(self, config: GANformerConfig, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        self.first = resolution == 4
        if self.first:
            self.const = nn.Parameter(torch.randn(channels, resolution, resolution))
        else:
            inner = config.channels(resolution // 2)
            self.conv0 = Layer(config, inner, resolution, up=True)
            self.skip = StyledConv(inner, channels, 1, None, up=True)
        # Two branches are added: each is scaled, so that the sum keeps the variance.
        self.conv1 = Layer(config, channels, resolution, gain=1.0 if self.first else _HALF)
        if resolution == config.resolution:
            self.conv_last = StyledConv(channels, channels, 3, config.z_dim, modulated=config.style)
            self.torgb = ToRGB(channels, config.z_dim, modulated=config.style)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return (self.conv1,) if self.first else (self.conv0, self.conv1)

    def forward(
        self,
        x: Tensor | None,
        slots: Sequence[Tensor],
        positions: Tensor | None,
        noise: Sequence[Tensor | None],
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features [B, C, R, R] and the layers' attention; a slot holds latents [B, k, D].

        `x` are the features of the block before, None in the first.
        """
        maps: list[Tensor] = []
        out = self.const.expand(len(slots[0]), -1, -1, -1) if x is None else x
        for layer, latents, own in zip(self.layers, slots, noise, strict=True):
            out, attention = layer(out, latents, positions, own)
            if attention is not None:
                maps.append(attention)
        if x is None:
            return out, maps
        return _HALF * self.skip(x) + out, maps


@dataclass(frozen=True)
class Painted:
    """Pictures [B, 3, R, R] in [-1, 1], and each layer's attention [B, k - 1, H, W], coarse to fine."""

    pictures: Tensor
    attention: tuple[Tensor, ...]

    def attention_maps(self) -> Tensor:
        """Return the attention [B, k - 1, layers, 1, R, R], one head, in the pictures' size by repeating."""
        size = self.pictures.shape[2:]
        maps = [F.interpolate(attention, size=size) for attention in self.attention]
        return torch.stack(maps, dim=2).unsqueeze(3)


class Synthesis(nn.Module):
    """Latents [B, k, slots, D], one slot a layer, to pictures."""

    def __init__(self, config: GANformerConfig) -> None:
        super().__init__()
        self.resolutions = config.resolutions
        for resolution in self.resolutions:
            setattr(self, f"b{resolution}", SynthesisBlock(config, resolution))

    @property
    def blocks(self) -> tuple[SynthesisBlock, ...]:
        return tuple(getattr(self, f"b{resolution}") for resolution in self.resolutions)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for block in self.blocks for layer in block.layers)

    @property
    def slots(self) -> int:
        """One for each layer, and two for the last convolution and the colours."""
        return len(self.layers) + 2

    def constant_noise(self) -> tuple[Tensor, ...]:
        """Return the noise [R, R] of each layer that the checkpoint holds."""
        return tuple(layer.noise_const for layer in self.layers)

    def random_noise(self, seeds: Sequence[int]) -> tuple[Tensor, ...]:
        """Return noise [B, 1, R, R] for each layer; each sample's depends on its own seed alone."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return tuple(
            torch.stack(
                [torch.randn(1, *layer.noise_const.shape, generator=g) for g in generators]
            ).to(layer.noise_const)
            for layer in self.layers
        )

    def forward(
        self, ws: Tensor, positions: Tensor | None, noise: Sequence[Tensor] | None
    ) -> Painted:
        """Paint from `ws` [B, k, slots, D]; without `noise` none is added."""
        slots = ws.unbind(2)
        noises = tuple(noise) if noise is not None else (None,) * len(self.layers)
        maps: list[Tensor] = []
        x: Tensor | None = None
        start = 0
        for block in self.blocks:
            own = slice(start, start + len(block.layers))
            x, attention = block(x, slots[own], positions, noises[own])
            maps += attention
            start = own.stop
        last = self.blocks[-1]
        x = last.conv_last(x, slots[start][:, -1])
        return Painted(last.torgb(x, slots[start + 1][:, -1]), tuple(maps))


class ResidualLayer(nn.Module):
    """Two linear layers and a leaky ReLU around them, [..., D] to [..., D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc0 = EqualizedLinear(dim, dim, lr_multiplier=_MAPPING_LR, activated=True)
        self.fc1 = EqualizedLinear(dim, dim, lr_multiplier=_MAPPING_LR)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        return F.leaky_relu(self.fc1(self.fc0(x)) + kept, 0.2)


class MappingMlp(nn.Module):
    """Latents [B, N, D] to styles [B, N, D]; with `exchange` the latents attend to each other on the way."""

    def __init__(self, dim: int, layers: int, latents: int, *, exchange: bool) -> None:
        super().__init__()
        self.depth = layers // 2
        self.exchange = exchange
        for i in range(self.depth):
            setattr(self, f"l{i}", ResidualLayer(dim))
            if exchange:
                attention = LatentAttention(
                    dim, dim, latents, integration="add", norm=None, duplex=False
                )
                setattr(self, f"sa{i}", attention)
        self.out_layer = EqualizedLinear(dim, dim, lr_multiplier=_MAPPING_LR, activated=True)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        for i in range(self.depth):
            # The layer keeps what came before the attention, as in the released networks.
            kept = x
            if self.exchange:
                x, _ = getattr(self, f"sa{i}")(x, x, positions, positions)
            x = getattr(self, f"l{i}")(x, kept)
        return self.out_layer(x)


class MappingNetwork(nn.Module):
    """Random latents z [B, k, D] to styles w [B, k, D]: the global one apart from the local ones."""

    def __init__(self, config: GANformerConfig) -> None:
        super().__init__()
        dim, layers, local = config.z_dim, config.mapping_layers, config.k - 1
        self.register_buffer("w_avg", torch.zeros(dim))
        self.global_mlp = MappingMlp(dim, layers, 1, exchange=False)
        self.mlp = MappingMlp(dim, layers, local, exchange=config.mapping_ltnt2ltnt)

    def forward(self, z: Tensor, positions: Tensor | None, truncation: float = 1.0) -> Tensor:
        """Return styles, drawn towards their average by a `truncation` below 1."""
        local = self.mlp(_normalised(z[:, :-1]), positions)
        w = torch.cat([local, self.global_mlp(_normalised(z[:, -1:]), None)], dim=1)
        return self.w_avg + truncation * (w - self.w_avg)


def _normalised(z: Tensor) -> Tensor:
    return z * (z.square().mean((1, 2), keepdim=True) + _EPS).rsqrt()


class GANformer(nn.Module):
    """Random latents z [B, k, D] to RGB pictures."""

    def __init__(self, config: GANformerConfig) -> None:
        super().__init__()
        self.config = config
        self.pos = nn.Parameter(torch.rand(config.k - 1, config.z_dim))
        self.synthesis = Synthesis(config)
        self.mapping = MappingNetwork(config)

    @property
    def positions(self) -> Tensor | None:
        """What tells local latents apart, [k - 1, D]; None where the network does without."""
        return self.pos if self.config.use_pos else None

    def styles(self, z: Tensor, truncation: float = 0.7) -> Tensor:
        """Return the same styles in every slot, [B, k, slots, D]."""
        w = self.mapping(z, self.positions, truncation)
        return w.unsqueeze(2).expand(-1, -1, self.synthesis.slots, -1)

    def paint(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Painted:
        """Return pictures and attention of `ws` [B, k, slots, D]; see `Synthesis` for the noise."""
        return self.synthesis(ws, self.positions, noise)

    def forward(
        self, z: Tensor, truncation: float = 0.7, noise: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return pictures [B, 3, R, R] in [-1, 1], not clamped."""
        return self.paint(self.styles(z, truncation), noise).pictures


def released_state(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the state dict of the averaged generator (`Gs`), or of a bare one, without unused filters.

    The authors' snapshots pickle whole objects with the code of their classes, which nothing here
    runs: `G_ema.state_dict()` must be saved once, where their code is trusted.
    """
    state = unwrapped(checkpoint.get("Gs", checkpoint))
    filtered = ("conv0.resample_kernel", "skip.resample_kernel")
    return {
        k: v for k, v in state.items() if not k.endswith("resample_kernel") or k.endswith(filtered)
    }
