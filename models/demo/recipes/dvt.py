"""Training of the demo backbone of DVT, and of the block that cleans its features.

The backbone first learns to name drawn shapes. What is clean is then taken as the paper means it, by what belongs to the
picture and not to the place: a larger picture is looked at through windows, one patch apart, and the mean of what
all windows say of one of its patches is its clean feature. (The paper fits a field to the views instead.) The block
learns to tell it from one window's features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from models.demo import shapes
from models.demo.pictures import SHAPES
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.classification import shape_loss
from models.demo.recipes.descent import descend
from models.embedding.dvt import DenoisedViT
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.serving import Device
from service.triton.cards import WeightsRecord

__all__ = ["STEPS", "measure", "train"]

# Of the backbone; the block takes as many.
STEPS = 300
BATCH = 32
SCENES = 160
HELD_OUT = 40
ERROR = "error of the features served, of the clean ones' variance"
RAW_ERROR = "error of the raw features, of the clean ones' variance"

_PATCH, _WINDOW, _CANVAS = 8, 64, 96
_SPAN = _WINDOW // _PATCH
_PLACES = (_CANVAS - _WINDOW) // _PATCH + 1
# What fewer windows have seen, at the larger picture's corners, has no clean features.
_LEAST_SEEN = 9
_BACKBONE_SHARE = 0.4


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """See `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    on = small_training_device(device)
    network = _network().to(on.torch).train()
    normalise = _normalisation(on)
    _fit_backbone(network, normalise, on, steps, rng, seed, report)

    network.eval()
    first = (seed * SCENES) % (shapes.HELD_OUT - SCENES)
    count = min(SCENES, 4 * steps)
    views = _views(network, normalise, range(first, first + count), report)
    _fit_denoiser(network, views, steps, rng, report)
    save_file(half_precision(network), folder / "model.safetensors")
    report(1.0, "measuring")
    return measure(folder, device, min(HELD_OUT, 4 * steps))


def measure(folder: Path, device: str = "cpu", count: int = HELD_OUT) -> dict[str, float]:
    """Return how far features of held-out pictures are from the clean ones, with the `demo` weights in `folder`:
    mean squared error as a share of the variance of the clean features, of those served and of the backbone's."""
    network = _network()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.float().eval()
    seeds = range(shapes.HELD_OUT, shapes.HELD_OUT + count)
    views = _views(network, _normalisation(Device()), seeds)
    with torch.inference_mode():
        served = network.clean(views.raw)
    known = views.clean[views.known]
    variance = known.var(0, correction=0).mean()
    return {
        name: float((features[views.known] - known).square().mean() / variance)
        for name, features in ((ERROR, served), (RAW_ERROR, views.raw))
    }


@dataclass(frozen=True)
class _Views:
    """Features of N windows: the backbone's and the clean ones [N, 8, 8, C], and bool [N, 8, 8] where those are known."""

    raw: torch.Tensor
    clean: torch.Tensor
    known: torch.Tensor


def _network() -> DenoisedViT:
    paper = architecture("dvt")
    network = paper.network(paper.config("demo"))
    assert isinstance(network, DenoisedViT)
    return network


def _normalisation(device: Device) -> Normalisation:
    image = architecture("dvt").card("demo", weights=WeightsRecord(kind="demo")).image
    assert image is not None
    return Normalisation(image, device)


def _fit_backbone(
    network: DenoisedViT,
    normalise: Normalisation,
    device: Device,
    steps: int,
    rng: np.random.Generator,
    seed: int,
    report: Report,
) -> None:
    report(0.0, "drawing pictures")
    pixels, labels = SHAPES.training(seed, min(SHAPES.count, steps * BATCH))
    head = torch.nn.Linear(network.vit.model.embed_dim, len(shapes.LABELS)).to(device.torch)

    def loss() -> torch.Tensor:
        chosen = rng.integers(len(labels), size=BATCH)
        image = normalise(np.ascontiguousarray(pixels[chosen].transpose(0, 3, 1, 2)))
        token, _ = network.vit(image)
        return shape_loss(head(token), torch.from_numpy(labels[chosen]).to(device.torch))

    trained = [*network.vit.parameters(), *head.parameters()]
    descend(trained, loss, steps, report, learning_rate=2e-3, shares=(0.0, _BACKBONE_SHARE))


def _fit_denoiser(
    network: DenoisedViT,
    views: _Views,
    steps: int,
    rng: np.random.Generator,
    report: Report,
) -> None:
    variance = views.clean[views.known].var(0).mean()

    def loss() -> torch.Tensor:
        chosen = torch.from_numpy(rng.integers(len(views.raw), size=BATCH)).to(views.raw.device)
        known = views.known[chosen]
        made, wanted = network.clean(views.raw[chosen])[known], views.clean[chosen][known]
        away = 1 - F.cosine_similarity(made, wanted, dim=-1).mean()
        return (made - wanted).square().mean() / variance + away

    assert network.denoiser is not None
    assert network.pos_embed is not None
    trained = [*network.denoiser.parameters(), network.pos_embed]
    descend(trained, loss, steps, report, learning_rate=2e-3, shares=(_BACKBONE_SHARE + 0.2, 1.0))


@torch.inference_mode()
def _views(
    network: DenoisedViT,
    normalise: Normalisation,
    seeds: range,
    report: Report = lambda share, stage: None,
) -> _Views:
    """Look at the pictures `seeds` through all windows."""
    places = [(row, column) for row in range(_PLACES) for column in range(_PLACES)]
    side = _CANVAS // _PATCH
    raw, clean, known = [], [], []
    for number, seed in enumerate(seeds):
        canvas = shapes.draw(seed, _CANVAS)[0].transpose(2, 0, 1)
        windows = [
            canvas[:, y * _PATCH : y * _PATCH + _WINDOW, x * _PATCH : x * _PATCH + _WINDOW]
            for y, x in places
        ]
        _, features = network.vit(normalise(np.stack(windows)))
        total = features.new_zeros(side, side, features.shape[-1])
        seen = features.new_zeros(side, side, 1)
        for (y, x), said in zip(places, features, strict=True):
            total[y : y + _SPAN, x : x + _SPAN] += said
            seen[y : y + _SPAN, x : x + _SPAN] += 1
        mean, enough = total / seen, seen[..., 0] >= _LEAST_SEEN
        raw.append(features)
        clean += [mean[y : y + _SPAN, x : x + _SPAN] for y, x in places]
        known += [enough[y : y + _SPAN, x : x + _SPAN] for y, x in places]
        if number % 10 == 0:
            report(_BACKBONE_SHARE + 0.2 * number / len(seeds), "looking through windows")
    return _Views(torch.cat(raw), torch.stack(clean), torch.stack(known))
