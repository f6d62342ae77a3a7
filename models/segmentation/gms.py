"""Generative Medical Segmentation (https://arxiv.org/abs/2403.18198).

A picture is encoded by the frozen autoencoder of Stable Diffusion; a small network of convolutions and attention, the
only trained part, turns the picture's latent into the latent of the mask's picture; the same autoencoder decodes
that. The mean over the decoded channels is the probability that a pixel belongs to what is looked for.

The mapping network is written here under the authors' names (https://github.com/King-HAW/GMS); the autoencoder is
diffusers' under that library's names, and checkpoints under the names of latent diffusion are translated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.layers.segmenter import Segmentation, Segmenter, binary
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

GROUPS = 16
EPS = 1e-6
MAPPING, AUTOENCODER = "mapping_model", "vae_model"


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=EPS)


class ResidualBlock(nn.Module):
    """Twice norm, PReLU and convolution, beside a skip: [B, C, H, W] to [B, C', H, W].

    The authors' state dict has each PReLU under two names, so each is registered twice.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.act1, self.act2 = nn.PReLU(), nn.PReLU()
        self.conv1 = nn.Sequential(
            _norm(channels), self.act1, nn.Conv2d(channels, width, 3, padding=1)
        )
        self.conv2 = nn.Sequential(_norm(width), self.act2, nn.Conv2d(width, width, 3, padding=1))
        self.skip_connection: nn.Module = nn.Identity()
        if channels != width:
            self.skip_connection = nn.Conv2d(channels, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_connection(x) + self.conv2(self.conv1(x))


class SpatialAttention(nn.Module):
    """Every position attends to all, by one head as wide as the map: [B, C, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (
            f(normed).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v)
        )  # B, N, C
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class ResidualAttentionBlock(nn.Module):
    """A residual block, then attention."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.resblock = ResidualBlock(channels, width)
        self.attention = SpatialAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.resblock(x))


class LatentMapping(nn.Module):
    """The latent of a picture [B, C, h, w] to that of its mask, of the same size (section 3.2 of the paper).

    A U-shaped network in which only the width changes: `ch` times `ch_mult` on the four levels. The heads of the
    inner levels are for training.
    """

    def __init__(
        self, in_channels: int, out_channels: int, ch: int, ch_mult: Sequence[int]
    ) -> None:
        super().__init__()
        widths = [ch * factor for factor in ch_mult]
        first, second, third, fourth = widths
        self.input_blocks = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.conv1_0 = ResidualAttentionBlock(ch, first)
        self.conv2_0 = ResidualAttentionBlock(first, second)
        self.conv3_0 = ResidualAttentionBlock(second, third)
        self.conv4_0 = ResidualAttentionBlock(third, fourth)
        self.conv3_1 = ResidualAttentionBlock(third + fourth, third)
        self.conv2_2 = ResidualAttentionBlock(second + third, second)
        self.conv1_3 = ResidualAttentionBlock(first + second, first)
        self.conv0_4 = ResidualAttentionBlock(ch + first, ch)
        for level, width in enumerate((ch, first, second, third)):
            head = nn.Conv2d(width, out_channels, 3, padding=1, bias=False)
            self.add_module(f"convds{level}", nn.Sequential(_norm(width), nn.SiLU(), head))

    def forward(self, latent: Tensor) -> Tensor:
        return self.levels(latent)[0]

    def levels(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the latent of the mask by each head, the outermost first."""
        x0 = self.input_blocks(latent)
        x1 = self.conv1_0(x0)
        x2 = self.conv2_0(x1)
        x3 = self.conv3_0(x2)
        x4 = self.conv4_0(x3)
        y3 = self.conv3_1(torch.cat([x3, x4], 1))
        y2 = self.conv2_2(torch.cat([x2, y3], 1))
        y1 = self.conv1_3(torch.cat([x1, y2], 1))
        y0 = self.conv0_4(torch.cat([x0, y1], 1))
        return self.convds0(y0), self.convds1(y1), self.convds2(y2), self.convds3(y3)


def autoencoder(config: Mapping[str, Any]) -> AutoencoderKL:
    """Return the autoencoder of a latent diffusion `ddconfig` with `embed_dim`; `groups` is that of its norms."""
    # Takes seconds to import, which only those who build this should spend.
    from diffusers import AutoencoderKL

    widths = [config["ch"] * factor for factor in config["ch_mult"]]
    return AutoencoderKL(
        in_channels=config["in_channels"],
        out_channels=config["out_ch"],
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=config["num_res_blocks"],
        latent_channels=config["embed_dim"],
        norm_num_groups=config.get("groups", 32),
    )


class GMS(nn.Module):
    """Both networks: pictures [B, 3, H, W] in -1..1, sides a multiple of the autoencoder's factor, to probabilities."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.vae_model = autoencoder(config["vae"])
        self.mapping_model = LatentMapping(**config["mapping"])
        self.scale_factor: float = config["scale_factor"]
        self.threshold = 0.5

    def encode(self, image: Tensor) -> Tensor:
        """Return scaled latents [B, C, h, w]: means of the posteriors."""
        mean: Tensor = self.vae_model.encode(image).latent_dist.mean
        return mean * self.scale_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Return pictures, about -1..1, of scaled latents."""
        decoded: Tensor = self.vae_model.decode(latent / self.scale_factor).sample
        return decoded

    def forward(self, image: Tensor) -> Tensor:
        """Return the probability [B, H, W] of each pixel."""
        return probabilities(self.decode(self.mapping_model(self.encode(image))))

    def predict(self, image: Tensor, depths: Sequence[int]) -> Sequence[Tensor]:
        return list(self(image))

    def decide(self, predicted: Tensor, size: tuple[int, int]) -> Segmentation:
        return binary(predicted, size, self.threshold)


def probabilities(decoded: Tensor) -> Tensor:
    """Return the probabilities [B, H, W] that decoded pictures [B, C, H, W] stand for."""
    return ((decoded.float().mean(1) + 1) / 2).clamp(0, 1)


def _named(name: str) -> str:
    return f"{AUTOENCODER}.{name}"


# name: (what is marked, data set, Dice coefficient, intersection over union), in per cent
_DATASETS = {
    "bus": ("breast lesion", "BUS", 88.42, 80.56),
    "busi": ("breast lesion", "BUSI", 81.43, 72.58),
    "glas": ("gland", "GlaS", 88.98, 81.16),
    "ham10000": ("skin lesion", "HAM10000", 94.11, 89.68),
    "kvasir-instrument": ("instrument", "Kvasir-Instrument", 94.24, 90.02),
}
_COMMIT = "e4c7e1badaa9222f64c9a413360666aadd6e977d"
_CHECKPOINTS = f"https://github.com/King-HAW/GMS/raw/{_COMMIT}/ckpt"
_STABLE_DIFFUSION = Source(
    "hf://stabilityai/stable-diffusion-2/vae/diffusion_pytorch_model.safetensors"
)
_STABLE_DIFFUSION_VAE = {
    "embed_dim": 4,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
}
_PUBLISHED = {
    "vae": _STABLE_DIFFUSION_VAE,
    "scale_factor": 0.18215,
    "mapping": {"in_channels": 4, "out_channels": 4, "ch": 32, "ch_mult": (1, 2, 4, 4)},
}
_DEMO = {
    "vae": _STABLE_DIFFUSION_VAE
    | {"ch": 16, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "groups": 8},
    "scale_factor": 1.0,
    "mapping": {"in_channels": 4, "out_channels": 4, "ch": 16, "ch_mult": (1, 1, 2, 2)},
}


def _image(size: int) -> ImageInput:
    # The authors' library resizes without a low-pass filter.
    return ImageInput(
        height=size,
        width=size,
        resize="squash",
        interpolation="linear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config=_DEMO,
            image=_image(64),
            labels=("lesion",),
            segmentation="binary",
            thresholds={"mask": 0.5},
            demo=True,
        )
    ]
    for name, (label, dataset, dice, overlap) in _DATASETS.items():
        variants.append(
            Variant(
                name,
                config=_PUBLISHED,
                image=_image(224),
                labels=(label,),
                segmentation="binary",
                sources=(
                    Source(f"{_CHECKPOINTS}/valid_{name}/best_model.pth"),
                    _STABLE_DIFFUSION,
                ),
                metrics=tuple(
                    Metric(name=metric, value=value, dataset=dataset, origin="published")
                    for metric, value in (("Dice", dice), ("IoU", overlap))
                ),
                thresholds={"mask": 0.5},
                notes=(
                    "The autoencoder is that of Stable Diffusion 2, under CreativeML OpenRAIL++-M.",
                    "A research model: not a medical device.",
                ),
            )
        )
    return {variant.name: variant for variant in variants}


@register
class GMSArchitecture(Architecture):
    """Generative medical segmentation: one checkpoint a data set, each with one kind of thing to mark."""

    slug = "gms"
    title = "GMS"
    task = Task.SEGMENTATION
    paper = Paper(
        slug="gms",
        title="Generative Medical Segmentation",
        year=2024,
        arxiv="2403.18198",
    )
    origin = "own"
    licence = Licence(code="none stated", weights="none stated", commercial=False)
    variants = _variants()
    max_batch = 8
    preferred_batches = (2, 4, 8)

    def network(self, config: Mapping[str, Any]) -> GMS:
        """Build both networks: `mapping` has the arguments of `LatentMapping`, `vae` those of `autoencoder`."""
        return GMS(config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Put each network's entries under its name; the autoencoder's may be named as in latent diffusion.

        Files of diffusers before 0.17 have other names of the attention. What only training needs is left out.
        """
        state = unwrapped(checkpoint)
        if all(name.startswith((f"{MAPPING}.", f"{AUTOENCODER}.")) for name in state):
            return state
        if "input_blocks.weight" in state:
            return {f"{MAPPING}.{name}": value for name, value in state.items()}
        return {
            _named(name): value for name, value in diffusers_names(state, config["vae"]).items()
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        assert isinstance(network, GMS)
        network.threshold = card.thresholds["mask"]
        return Segmenter(network, card, device)


def diffusers_names(state: StateDict, config: Mapping[str, Any]) -> StateDict:
    """Return an autoencoder's entries under diffusers' present names."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    from models.diffusion.autoencoder import current_name

    if not any(name.startswith("encoder.down.") for name in state):
        return {current_name(name): value for name, value in state.items()}
    kinds = ["block"] * len(config["ch_mult"])
    return convert_ldm_vae_checkpoint(state, {"down_block_types": kinds, "up_block_types": kinds})
