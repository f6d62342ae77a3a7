"""DRCT: Saving Image Super-resolution away from Information Bottleneck (https://arxiv.org/abs/2404.00722).

Swin blocks work on every pixel of a small picture and sub-pixel convolutions then make the large one, as in
SwinIR. In that design the features narrow towards the end of deep networks; here the blocks of a group are
connected densely, as in RRDB: each sees what all before it found, so that nothing has to pass through a
bottleneck.

The network is written here under the authors' names (https://github.com/ming053l/DRCT, MIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.layers.upscaler import Upscaler, one_tile, parameters
from models.registry import register
from models.serving import Device, Predictor
from models.super_resolution._drct_network import DRCT, MEAN
from service.triton.cards import Card, Licence, Metric, Paper, Task

# name: (title, groups, {set: PSNR at x4}, multiply-adds at x4 as the authors state them)
_SIZES: dict[str, tuple[str, int, dict[str, float], str]] = {
    "": (
        "DRCT",
        6,
        {"Set5": 33.11, "Set14": 29.35, "B100": 28.18, "Urban100": 28.06, "Manga109": 32.59},
        "5.92 G",
    ),
    "large-": (
        "DRCT-L",
        12,
        {"Set5": 33.37, "Set14": 29.54, "B100": 28.16, "Urban100": 28.70, "Manga109": 33.14},
        "9.20 G",
    ),
}
_WINDOW = 16

BY_HAND = "The authors share checkpoints on a shared drive only: download one by hand and add it."
_TAKEN_BACK = (
    "The authors' own weights of this scale are no longer to be had: this is for weights of others."
)

# Buffers of the authors' checkpoints that follow from the window and the size of a picture.
_CONSTRUCTED = ("attn_mask", "relative_position_index")


def _config(scale: int, groups: int) -> dict[str, Any]:
    return {
        "scale": scale,
        "dim": 180,
        "heads": (6,) * groups,
        "window": _WINDOW,
        "growth": 32,
        "mlp_ratio": 2.0,
        "image_size": 64,
    }


def _variant(name: str, scale: int, groups: int, *notes: str, **fields: Any) -> Variant:
    return Variant(
        name,
        config=_config(scale, groups),
        image=one_tile(MEAN),
        scale=scale,
        parameters=parameters(_WINDOW),
        notes=notes,
        **fields,
    )


def _variants() -> dict[str, Variant]:
    demo = {
        "scale": 2,
        "dim": 24,
        "heads": (4, 4),
        "window": 8,
        "growth": 8,
        "mlp_ratio": 2.0,
        "image_size": 64,
    }
    variants = [
        Variant(
            "demo",
            config=demo,
            image=one_tile(MEAN),
            scale=2,
            parameters=parameters(demo["window"]),
            demo=True,
        )
    ]
    for prefix, (title, groups, figures, operations) in _SIZES.items():
        metrics = tuple(
            Metric(
                name="PSNR",
                value=value,
                dataset=name,
                origin="published",
                note=f"{title} x4, dB, luma, 4 pixels of border left out",
            )
            for name, value in figures.items()
        )
        stated = f"For 64 x 64 pixels the authors state {operations} multiply-adds."
        variants.append(_variant(f"{prefix}x4", 4, groups, BY_HAND, stated, metrics=metrics))
        variants += [_variant(f"{prefix}x{scale}", scale, groups, _TAKEN_BACK) for scale in (2, 3)]
    variants.append(
        _variant("real-x4", 4, 6, BY_HAND, "Real-DRCT-GAN: for photographs with noise and JPEG.")
    )
    return {variant.name: variant for variant in variants}


@register
class DRCTArchitecture(Architecture):
    """DRCT for super-resolution."""

    slug = "drct"
    title = "DRCT"
    task = Task.SUPER_RESOLUTION
    paper = Paper(
        slug="drct",
        title="DRCT: Saving Image Super-resolution away from Information Bottleneck",
        year=2024,
        arxiv="2404.00722",
    )
    origin = "own"
    licence = Licence(code="MIT", weights="MIT")
    variants = _variants()
    # A tile may take a CPU longer than an interactive request may.
    cost = "batch"
    max_batch = 8
    preferred_batches = (4, 8)

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network from `DRCT`'s arguments."""
        return DRCT(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open `params_ema`, else `params`, and leave out buffers that the network computes itself."""
        for key in ("params_ema", "params"):
            if isinstance(checkpoint.get(key), Mapping):
                checkpoint = checkpoint[key]
                break
        return {
            name: value
            for name, value in unwrapped(checkpoint).items()
            if not name.endswith(_CONSTRUCTED)
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Upscaler(network, card, device)
