"""GenConViT: Deepfake Video Detection Using Generative Convolutional Vision Transformer.

https://arxiv.org/abs/2307.07036 (Applied Sciences 15(12), 6622, 2025). Each face is rebuilt by an
autoencoder (network "ed") or by a variational one (network "vae"); a ConvNeXt looks at the face and at
its copy, and the pair is classified. Weights are the authors' (CC-BY-NC-4.0); the code is this
project's own, only names, shapes and constants follow the released one.

Where this deliberately departs from the released code:

* Only what reaches the logits exists here. The Swin network, hung below ConvNeXt as `patch_embed`, is never
  called there; `fc1`, `fc2` and `var` of the vae's encoder and its `fc3` serve training at most. Their
  entries in checkpoints are dropped. The latent mean is computed once, not three times.
* The vae's noise, drawn anew at every call there, comes from a generator seeded for each face (SEED,
  0 without one), so the same face gives the same score, alone or in a batch.
* As released, and kept because the weights were trained so: the mean stands in for the log
  variance in the reparameterisation; the decoded face goes through a last ReLU; "ed" looks at
  (copy, face), "vae" at (face, copy).
* Both networks score every face, and the score is the mean of their sigmoids, as there; but a single face
  works, "ed" or "vae" alone really runs one network, and mixed precision works.
* SCORES are (real, fake); the networks' own order is (fake, real).
* The verdict belongs to the service: the card's threshold on the mean score of `fake` there decides, not
  which of the two means is larger, and a video without a face gets no verdict instead of FAKE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from torch import nn
from torch.nn import functional as F

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.layers.graph import FeedForward, Graph
from models.layers.noise import noises
from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.registry import register
from models.serving import Arrays, Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

# Entries of the authors' checkpoints that no output depends on.
UNUSED = (
    "embedder.",
    "backbone.patch_embed.",
    "convnext_backbone.patch_embed.",
    "encoder.fc1.",
    "encoder.fc2.",
    "encoder.var.",
    "fc3.",
)


class Convolutions(nn.Module):
    """The encoder of "ed": per level 3x3 convolution, ReLU, halving by max-pooling."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in pairwise((3, *channels)):
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.features(image)


class Latent(nn.Module):
    """The encoder of "vae": per level strided 3x3 convolution, batch norm, leaky ReLU; then the latent mean."""

    def __init__(self, channels: Sequence[int], image_size: int, latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side = image_size
        for inner, outer in pairwise((3, *channels)):
            layers += [
                nn.Conv2d(inner, outer, 3, stride=2, padding=1),
                nn.BatchNorm2d(outer),
                nn.LeakyReLU(),
            ]
            side = math.ceil(side / 2)
        self.features = nn.Sequential(*layers)
        self.mu = nn.Linear(channels[-1] * side * side, latent)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.mu(self.features(image).flatten(1))


class Deconvolutions(nn.Module):
    """Both decoders: per level doubling by transposed convolution, then an activation, also after the last."""

    def __init__(self, channels: Sequence[int], activation: type[nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in pairwise(channels):
            layers += [nn.ConvTranspose2d(inner, outer, 2, stride=2), activation()]
        self.features = nn.Sequential(*layers)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        return self.features(code)


class AutoencoderNetwork(nn.Module):
    """Network "ed". Maps normalised faces [B, 3, H, W] to logits [B, 2], (fake, real)."""

    def __init__(
        self, channels: Sequence[int], backbone: Mapping[str, Any], num_classes: int
    ) -> None:
        super().__init__()
        self.encoder = Convolutions(channels)
        self.decoder = Deconvolutions((*reversed(channels), 3), nn.ReLU)
        self.backbone = ConvNeXt(**backbone)
        pair = 2 * self.backbone.num_classes
        self.fc = nn.Linear(pair, pair // 4)
        self.fc2 = nn.Linear(pair // 4, num_classes)

    def rebuild(self, image: torch.Tensor) -> torch.Tensor:
        """Return the decoded copy of the faces."""
        return self.decoder(self.encoder(image))

    def classify(self, image: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        """Return the logits of the faces and their copies."""
        pair = torch.cat((self.backbone(copy), self.backbone(image)), dim=1)
        return self.fc2(F.gelu(self.fc(F.gelu(pair))))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classify(image, self.rebuild(image))


class VariationalNetwork(nn.Module):
    """Network "vae". Maps normalised faces [B, 3, S, S] and noise [B, latent] to logits [B, 2], (fake, real)."""

    def __init__(
        self,
        channels: Sequence[int],
        decoder_channels: Sequence[int],
        latent: int,
        image_size: int,
        backbone: Mapping[str, Any],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = Latent(channels, image_size, latent)
        self.decoder = Deconvolutions(decoder_channels, nn.LeakyReLU)
        self.convnext_backbone = ConvNeXt(**backbone)
        pair = 2 * self.convnext_backbone.num_classes
        self.fc = nn.Linear(pair, pair // 4)
        self.fc2 = nn.Linear(pair // 4, num_classes)
        self._code = _code_shape(decoder_channels[0], latent)

    def rebuild(self, image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the copy of the faces decoded from a latent drawn with `noise`."""
        return self.decode(self.draw(self.encoder(image), noise))

    def draw(self, mean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the latent [B, latent]; the mean is also taken for the log variance, as released."""
        return noise * torch.exp(0.5 * mean) + mean

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(latent.unflatten(1, self._code))

    def classify(self, image: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        """Return the logits of the faces and their copies, which may be smaller."""
        pair = torch.cat((self.convnext_backbone(image), self.convnext_backbone(copy)), dim=1)
        return self.fc2(F.relu(self.fc(F.relu(pair))))

    def forward(self, image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.classify(image, self.rebuild(image, noise))


class GenConViT(nn.Module):
    """The networks of one variant, by name ("ed", "vae").

    Maps normalised faces [B, 3, S, S] and noise [B, latent] (needed by "vae" only) to logits
    [B, members, 2], (fake, real).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        shared = {"backbone": config["backbone"], "num_classes": config["num_classes"]}
        if "ed" in config:
            self.ed = AutoencoderNetwork(**config["ed"], **shared)
        if "vae" in config:
            self.vae = VariationalNetwork(
                **config["vae"], image_size=config["image_size"], **shared
            )

    @property
    def latent(self) -> int:
        """The number of noise values a face needs; 0 where there is no "vae"."""
        return self.vae.latent if hasattr(self, "vae") else 0

    def forward(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        logits = []
        if hasattr(self, "ed"):
            logits.append(self.ed(image))
        if hasattr(self, "vae"):
            logits.append(self.vae(image, noise))
        return torch.stack(logits, dim=1)


class PairScores(Graph):
    """FACES [B, 3, S, S], and NOISE [B, latent] where there is a "vae", to SCORES [B, 2] and MEMBERS [B, members, 2]."""

    input = "FACES"
    outputs = ("SCORES", "MEMBERS")

    def __init__(self, network: GenConViT, card: Card, device: Device) -> None:
        super().__init__()
        assert card.image is not None
        self.network = convert(network, device)
        self.normalise = Normalisation(card.image, device)
        self.noise = network.latent
        self.device = device

    def forward(
        self, pixels: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        faces = self.normalise.scaled(pixels)
        with self.device.autocast():
            logits = self.network(faces, noise)
        members = logits.float().sigmoid().flip(-1)
        return members.mean(1), members


class FaceScores(FeedForward):
    """FACES `uint8` [B, 3, S, S] (and SEED [B, 1]) to SCORES [B, 2] and MEMBERS [B, members, 2].

    Each is a pair (real, fake) of probabilities; they come from two sigmoids and need not sum to 1.
    """

    def __init__(self, network: GenConViT, card: Card, device: Device) -> None:
        self.graph: PairScores = PairScores(network, card, device)

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        inputs = [self.graph.normalise.moved(batch["FACES"])]
        if self.graph.noise:
            drawn = noises(batch.get("SEED"), len(inputs[0]), self.graph.noise)
            inputs.append(torch.from_numpy(drawn).to(inputs[0].device))
        scores, members = self.graph(*inputs)
        return {"SCORES": scores.cpu().numpy(), "MEMBERS": members.cpu().numpy()}


def _code_shape(channels: int, latent: int) -> tuple[int, int, int]:
    side = math.isqrt(latent // channels)
    if channels * side * side != latent:
        raise ValueError(f"{latent} latent values are no square map of {channels} channels")
    return channels, side, side


_OFFICIAL = {
    "image_size": 224,
    "num_classes": 2,
    "backbone": {
        "depths": (3, 3, 9, 3),
        "dims": (96, 192, 384, 768),
        "ls_init_value": 1e-6,
        "num_classes": 1000,
    },
}
_ED = {"channels": (16, 32, 64, 128, 256)}
_VAE = {
    "channels": (16, 32, 64, 128),
    "decoder_channels": (256, 64, 32, 16, 3),
    "latent": 12544,
}
# About 450 thousand parameters in both networks.
_DEMO = {
    "image_size": 112,
    "num_classes": 2,
    "backbone": {
        "depths": (1, 1, 3, 1),
        "dims": (16, 32, 48, 80),
        "ls_init_value": 1.0,
        "num_classes": 64,
    },
    "ed": {"channels": (8, 16, 24, 32)},
    "vae": {
        "channels": (8, 16, 24, 16),
        "decoder_channels": (8, 24, 16, 8, 3),
        "latent": 128,
    },
}


def _image(size: int) -> ImageInput:
    # The released code resizes the box with OpenCV's area interpolation; "box" is its equal here.
    return ImageInput(height=size, width=size, resize="squash", interpolation="box")


def _source(member: str) -> Source:
    return Source(f"hf://Deressa/GenConViT/genconvit_{member}_inference.pth")


def _published() -> tuple[Metric, ...]:
    note = "both networks, by video, computed from the authors' published result files"
    results = {
        "DFDC": (98.50, 0.9994, 0.991),
        "FaceForensics++": (97.05, 0.9960, 0.971),
        "DeepfakeTIMIT": (97.02, 0.9970, 0.955),
        "Celeb-DF v2": (90.95, 0.9814, 0.916),
    }
    return tuple(
        Metric(name=name, value=value, dataset=dataset, origin="published", note=note)
        for dataset, values in results.items()
        for name, value in zip(("accuracy", "AUC", "F1"), values, strict=True)
    )


def _variants() -> dict[str, Variant]:
    labels, thresholds = ("real", "fake"), {"fake": 0.5}
    variants = (
        Variant(
            "demo",
            config=_DEMO,
            image=_image(112),
            labels=labels,
            members=("ed", "vae"),
            thresholds=thresholds,
            demo=True,
            default=True,
        ),
        Variant(
            "both",
            config=_OFFICIAL | {"ed": _ED, "vae": _VAE},
            image=_image(224),
            labels=labels,
            members=("ed", "vae"),
            sources=(_source("ed"), _source("vae")),
            metrics=_published(),
            flops=15_090_000_000,
            thresholds=thresholds,
        ),
        Variant(
            "ed",
            config=_OFFICIAL | {"ed": _ED},
            image=_image(224),
            labels=labels,
            members=("ed",),
            sources=(_source("ed"),),
            flops=9_190_000_000,
            thresholds=thresholds,
        ),
        Variant(
            "vae",
            config=_OFFICIAL | {"vae": _VAE},
            image=_image(224),
            labels=labels,
            members=("vae",),
            sources=(_source("vae"),),
            flops=5_900_000_000,
            thresholds=thresholds,
        ),
    )
    return {variant.name: variant for variant in variants}


@register
class GenConViTArchitecture(Architecture):
    """GenConViT for the detection of manipulated faces."""

    slug = "genconvit"
    title = "GenConViT"
    task = Task.DEEPFAKE
    paper = Paper(
        slug="genconvit",
        title="GenConViT: Deepfake Video Detection Using Generative Convolutional Vision Transformer",
        year=2023,
        arxiv="2307.07036",
    )
    origin = "own"
    licence = Licence(code="GPL-3.0", weights="CC-BY-NC-4.0", commercial=False)
    activation = "sigmoid"
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> GenConViT:
        return GenConViT(config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Put the entries of one network's checkpoint under its name, without the unused ones.

        A checkpoint that already has the networks' names in front comes through unchanged. Raises
        ValueError if it holds a network that `config` does not have.
        """
        state = unwrapped(checkpoint)
        if all(name.startswith(("ed.", "vae.")) for name in state):
            return state
        variational = any(name.startswith("convnext_backbone.") for name in state)
        member = "vae" if variational else "ed"
        if member not in config:
            raise ValueError(f"this checkpoint holds the network {member!r}, not the other one")
        return {
            f"{member}.{name}": value
            for name, value in state.items()
            if not name.startswith(UNUSED)
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        assert isinstance(network, GenConViT)
        return FaceScores(network, card, device)
