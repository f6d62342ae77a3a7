"""One training for all demo classifiers of pictures: the colour and the shape of one drawn object, or what suits the paper.

Short and for one core: what the networks share (drawing the pictures) is done once, and beside the label of a
shape its two halves are learned, so that a red star also teaches what any star is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from models.demo import shapes
from models.demo.pictures import RADIOGRAPHS, SHAPES, TISSUE, PictureSet
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.auc import auc
from models.demo.recipes.descent import descend
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import Card, WeightsRecord

BATCH = 32
SMOOTHING = 0.05

# Of logits [B, C] and labels, [B] or [B, C].
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Of probabilities [N, C] and labels.
Score = Callable[[np.ndarray, np.ndarray], float]


def shape_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the label, of its colour and of its shape, whose probabilities are sums over labels."""
    count = len(shapes.SHAPES)
    grid = logits.unflatten(1, (-1, count))  # B, colour, shape
    return (
        F.cross_entropy(logits, truth, label_smoothing=SMOOTHING)
        + F.cross_entropy(grid.logsumexp(2), truth // count)
        + F.cross_entropy(grid.logsumexp(1), truth % count)
    )


def kind_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of labels that exclude each other."""
    return F.cross_entropy(logits, truth, label_smoothing=SMOOTHING)


def top1(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of the pictures whose most probable label is the right one."""
    return float((scores.argmax(1) == truth).mean())


def mean_auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the labels of the area under the curve of each against the others."""
    if truth.ndim == 1:
        truth = truth[:, None] == np.arange(scores.shape[1])
    return float(
        np.mean([auc(s[t == 0], s[t == 1]) for s, t in zip(scores.T, truth.T, strict=True)])
    )


@dataclass(frozen=True)
class Classification:
    """Trains the `demo` variant of `slug` with AdamW and a one-cycle schedule; see `models.demo.recipes.Recipe`.

    The variant takes 64 x 64 pictures and has the labels of `pictures`.
    """

    slug: str
    STEPS: int = 1200
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    pictures: PictureSet = SHAPES
    loss: Loss = shape_loss
    score: tuple[str, Score] = ("top-1", top1)
    # The faster one for nearly all of them on CPUs.
    layout: torch.memory_format = torch.channels_last

    def train(
        self, folder: Path, device: str, seed: int, report: Report, steps: int | None = None
    ) -> dict[str, float]:
        steps = steps or self.STEPS
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        paper = architecture(self.slug)
        card = paper.card("demo", weights=WeightsRecord(kind="demo"))
        report(0.0, "drawing pictures")
        pixels, labels = self.pictures.training(seed, min(self.pictures.count, steps * BATCH))
        on = small_training_device(device)
        network = paper.network(paper.config("demo"))
        network = network.to(on.torch, memory_format=self.layout).train()
        self._fit(network, card, pixels, labels, steps, rng, on, report)

        save_file(half_precision(network), folder / "model.safetensors")
        report(1.0, "measuring")
        return self.measure(folder, device, steps * BATCH)

    def measure(
        self, folder: Path, device: str = "cpu", count: int | None = None
    ) -> dict[str, float]:
        """Return the score of the weights in `folder` on held-out pictures, `count` at most, as drawn and degraded."""
        paper = architecture(self.slug)
        card = paper.card("demo", weights=WeightsRecord(kind="demo"))
        served = paper.load(card, folder, Device(device))
        assert isinstance(served, Predictor)
        most = self.pictures.held_out_count
        held_out = self.pictures.held_out(min(count or most, most))
        name, score = self.score
        return {
            name: score(_scores(served, held_out.clean), held_out.truth),
            f"{name}, degraded pictures": score(_scores(served, held_out.degraded), held_out.truth),
        }

    def _fit(
        self,
        network: torch.nn.Module,
        card: Card,
        pixels: np.ndarray,
        labels: np.ndarray,
        steps: int,
        rng: np.random.Generator,
        device: Device,
        report: Report,
    ) -> None:
        assert card.image is not None
        normalise = Normalisation(card.image, device)

        def loss() -> torch.Tensor:
            chosen = rng.integers(len(labels), size=BATCH)
            image = normalise(_shifted(pixels[chosen], rng).transpose(0, 3, 1, 2))
            truth = torch.from_numpy(labels[chosen]).to(device.torch)
            with device.autocast():
                logits = network(image.contiguous(memory_format=self.layout))
            return self.loss(logits.float(), truth)

        descend(
            network.parameters(),
            loss,
            steps,
            report,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )


# By model id.
RECIPES = {
    f"{recipe.slug}-demo": recipe
    for recipe in (
        Classification("ci2p-vit", STEPS=3000),
        Classification("convit"),
        Classification("convnext", STEPS=4000),
        Classification("crossvit"),
        Classification("cvt"),
        Classification(
            "duoformer",
            STEPS=1500,
            pictures=TISSUE,
            loss=kind_loss,
            score=("mean AUC", mean_auc),
        ),
        # In channels-last torch 2.15 crashes on a CPU after some steps of these convolutions.
        Classification("fmvit", STEPS=2500, layout=torch.contiguous_format),
        Classification("gmm-vit"),
        Classification("hornet", STEPS=3000),
        Classification("hyena-nd"),
        Classification(
            "mae-thorax",
            STEPS=3000,
            pictures=RADIOGRAPHS,
            loss=F.binary_cross_entropy_with_logits,
            score=("mean AUC", mean_auc),
        ),
        Classification("next-vit"),
        Classification("s2aformer"),
        Classification("shiftaddvit"),
        Classification("svt", STEPS=3000),
        Classification("swin"),
        Classification("t2t-vit"),
        Classification("tic"),
        Classification("tinyvit"),
        Classification("tnt"),
        Classification("turbovit", STEPS=3000),
        Classification("uniformer"),
        Classification("vir"),
        Classification("vit-resnas", STEPS=2400),
    )
}


def _shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror the batch half of the time and move it by up to 4 pixels, edges repeated."""
    if rng.uniform() < 0.5:
        pixels = pixels[:, :, ::-1]
    dx, dy = rng.integers(0, 9, size=2)
    padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    return padded[:, dy : dy + 64, dx : dx + 64]


def _scores(served: Predictor, pixels: np.ndarray) -> np.ndarray:
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    parts = [planes[k : k + 100] for k in range(0, len(planes), 100)]
    return np.concatenate([served.predict({"IMAGE": part})["SCORES"] for part in parts])
