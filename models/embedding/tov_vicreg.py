"""TOV-VICReg: self-supervised pretraining of vision transformers for games (https://arxiv.org/abs/2209.10901).

A small ViT learns from Atari frames without rewards: two augmented views of a frame shall have
one embedding (variance, invariance, covariance: VICReg), and from the embeddings of three consecutive
observations a linear layer tells whether they are in order. An observation is three consecutive grey frames as
the channels of one picture. The position table is made for 224 pixels and resized to the 84 of a frame at
every call. The released code takes (now, before, after) for the right order, and so does the network here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.layers.dino_vit import DinoViT
from models.layers.embedder import Embedder
from models.registry import register
from models.serving import Arrays, Device, Predictor
from service.triton.cards import Card, ClipInput, ImageInput, Licence, Paper, Parameter, Task

_SIZES = ("table_size", "patch_size", "dim", "depth", "heads")

# What other projects' training puts before the encoder's names (MoCo v3, wrappers, this paper's own).
_PREFIXES = ("module.", "base_encoder.", "backbone.", "encoder.", "vit.")

# Grey frames from 0 to 1, without mean and deviation. Frames of another size are averaged down, as
# the replays that the paper learns from were.
_FRAMES = ImageInput(
    height=84,
    width=84,
    colour="L",
    resize="squash",
    interpolation="box",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
_CLIP = ClipInput(frames=3, sampling="dense", stride=1)

# name: (width, heads, patch, multiply-adds at 84 pixels where published)
_PUBLISHED: dict[str, tuple[int, int, int, float | None]] = {
    "tiny-patch8": (192, 3, 8, 0.59e9),
    "tiny-patch16": (192, 3, 16, 0.15e9),
    "small-patch8": (384, 6, 8, 2.25e9),
    "base-patch8": (768, 12, 8, None),
}


class TOVVICReg(nn.Module):
    """The encoder with what it is trained by: a projector and a layer that judges the order.

    Maps an observation [B, 3, H, W] to its projection [B, projection]; without widths of a projector to its
    embedding.
    """

    def __init__(self, backbone: DinoViT, projection: Sequence[int]) -> None:
        super().__init__()
        dim = backbone.pos_embed.shape[-1]
        self.backbone = backbone
        layers: list[nn.Module] = []
        widths = (dim, *projection)
        for before, after in itertools.pairwise(widths[:-1]):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        if projection:
            layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
        self.projector = nn.Sequential(*layers)
        self.temporal_order_predictor = nn.Sequential(nn.Linear(3 * dim, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.projector(self.represent(image)[0])

    def represent(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the class token [B, dim] and the map of patch tokens [B, h, w, dim]."""
        return self.backbone.represent(image)

    def disorder(
        self, now: torch.Tensor, before: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Return the logit [B, 1] that three embeddings [B, dim] are not in this order."""
        return self.temporal_order_predictor(torch.cat((now, before, after), dim=1))


class OrderingEmbedder(Embedder):
    """An embedding that with BEFORE and AFTER, like IMAGE, also tells whether the three are in order.

    IN_ORDER float32 [B, 1]: the probability that BEFORE, IMAGE and AFTER follow each other.
    """

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        answer = super().predict(batch)
        if "BEFORE" not in batch or "AFTER" not in batch:
            return answer
        network = cast(TOVVICReg, self.graph.network)
        now, before, after = (
            self.graph(self.graph.normalise.moved(batch[name]))[0]
            for name in ("IMAGE", "BEFORE", "AFTER")
        )
        with self.graph.device.autocast():
            logit = network.disorder(now, before, after)
        return answer | {"IN_ORDER": (-logit.float()).sigmoid().cpu().numpy()}


_ORDER = {
    "order": Parameter(
        type="boolean",
        default=False,
        description="Tell whether each three observations are in order.",
    )
}


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "table_size": 84,
                "patch_size": 12,
                "dim": 96,
                "depth": 4,
                "heads": 3,
                "projection": (),
            },
            image=_FRAMES,
            clip=_CLIP,
            parameters=_ORDER,
            notes=("It has seen drawn shapes that move, grow or shrink, three frames apart.",),
            demo=True,
        )
    ]
    for name, (dim, heads, patch, flops) in _PUBLISHED.items():
        encoder = Variant(
            name,
            config={
                "table_size": 224,
                "patch_size": patch,
                "dim": dim,
                "depth": 12,
                "heads": heads,
                "projection": None,
            },
            image=_FRAMES,
            clip=_CLIP,
            flops=None if flops is None else int(flops),
            notes=(
                "The authors publish no checkpoint; add the `final_encoder.pth` of a training of yours.",
            ),
        )
        variants += [
            encoder,
            replace(
                encoder,
                name=f"{name}-order",
                config={**encoder.config, "projection": ()},
                parameters=_ORDER,
                notes=(
                    "The authors publish no checkpoint; add the whole network of a training of yours.",
                ),
            ),
        ]
    return {variant.name: variant for variant in variants}


@register
class TOVVICRegArchitecture(Architecture):
    """TOV-VICReg's encoder for the embedding of game frames."""

    slug = "tov-vicreg"
    title = "TOV-VICReg"
    task = Task.EMBEDDING
    paper = Paper(
        slug="tov-vicreg",
        title="Pretraining the Vision Transformer using self-supervised methods for vision based deep "
        "reinforcement learning",
        year=2022,
        arxiv="2209.10901",
    )
    origin = "own"
    licence = Licence(code="none stated", weights="none published", commercial=False)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the encoder; with `projection` (the projector's widths) the whole training network.

        Without any widths the projector is left out, and what judges the order is not.
        """
        encoder = DinoViT(**{name: config[name] for name in _SIZES})
        if config["projection"] is None:
            return encoder
        return TOVVICReg(encoder, config["projection"])

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Take an encoder from its own file, a whole training network, DINO's or MoCo v3's checkpoint.

        What DINO calls `teacher` is taken; names lose the prefixes of wrappers, heads are dropped.
        """
        if isinstance(checkpoint.get("teacher"), Mapping):
            checkpoint = checkpoint["teacher"]
        state = unwrapped(checkpoint)
        if config["projection"]:
            return state
        if config["projection"] is not None:
            return {
                name: value for name, value in state.items() if not name.startswith("projector.")
            }
        # Beside the encoder there may be a second one that follows it, a projector, a predictor.
        for own in ("base_encoder.", "backbone."):
            if any(name.startswith(own) for name in state):
                state = {name: value for name, value in state.items() if name.startswith(own)}
        state = {_bare(name): value for name, value in state.items()}
        return {name: value for name, value in state.items() if not name.startswith("head.")}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return (OrderingEmbedder if card.parameters else Embedder)(network, card, device)


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
