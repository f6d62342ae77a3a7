"""Training of the demo classifiers of videos: they name the motion of one drawn shape.

Half of the clips are drawn longer and larger, then sampled and scaled down as the service does, so
that the network also judges videos that were cut, scaled or compressed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from models.architecture import Architecture
from models.demo import motions
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.descent import descend
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import Card, WeightsRecord

BATCH = 16
CLIPS = 6_000
WARM_UP = 0.05
HELD_OUT_CLIPS = 1_000
FRAMES = 8
SIZE = 64


@dataclass(frozen=True)
class Motions:
    """Trains the `demo` variant of `slug` with AdamW and a one-cycle schedule; see `models.demo.recipes.Recipe`.

    The variant takes clips of 8 frames, 64 x 64, and has the labels of `models.demo.motions`.
    """

    slug: str
    STEPS: int = 3000
    learning_rate: float = 2e-3
    weight_decay: float = 0.05

    def train(
        self, folder: Path, device: str, seed: int, report: Report, steps: int | None = None
    ) -> dict[str, float]:
        steps = steps or self.STEPS
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        paper = architecture(self.slug)
        card = paper.card("demo", weights=WeightsRecord(kind="demo"))
        clips, labels = _clips(seed, min(CLIPS, steps * BATCH), rng, report)
        on = small_training_device(device)
        network = paper.network(paper.config("demo")).to(on.torch).train()
        self._fit(network, card, clips, labels, steps, rng, on, report)

        save_file(half_precision(network), folder / "model.safetensors")
        report(1.0, "measuring")
        return measure(paper, card, folder, Device(device), min(HELD_OUT_CLIPS, steps * BATCH))

    def _fit(
        self,
        network: torch.nn.Module,
        card: Card,
        clips: np.ndarray,
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
            shown, truth = _varied(clips[chosen], labels[chosen], rng)
            planes = np.ascontiguousarray(shown.reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2))
            clip = normalise(planes).unflatten(0, (-1, FRAMES)).transpose(1, 2).contiguous()
            with device.autocast():
                logits = network(clip)
            wanted = torch.from_numpy(truth).to(device.torch)
            return F.cross_entropy(logits.float(), wanted, label_smoothing=0.05)

        descend(
            network.parameters(),
            loss,
            steps,
            report,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warm_up=WARM_UP,
            shares=(0.1, 1.0),
        )


# By model id.
RECIPES = {
    "uniformer-video-demo": Motions("uniformer-video"),
    "uniformerv2-demo": Motions("uniformerv2", learning_rate=1e-3),
}


def measure(
    paper: Architecture, card: Card, folder: Path, device: Device, count: int
) -> dict[str, float]:
    """Return top-1 of the weights in `folder` on `count` held-out clips, as drawn and degraded."""
    served = paper.load(card, folder, device)
    assert isinstance(served, Predictor)
    rng = np.random.default_rng(motions.HELD_OUT)
    truth = np.array([motions.motion(motions.HELD_OUT + k).label for k in range(count)])
    drawn = (motions.clip(motions.HELD_OUT + k, FRAMES, SIZE)[0] for k in range(count))
    worse = (_degraded(motions.HELD_OUT + k, rng) for k in range(count))
    return {
        "top-1": _top1(served, np.stack(list(drawn)), truth),
        "top-1, degraded clips": _top1(served, np.stack(list(worse)), truth),
    }


def _clips(
    seed: int, count: int, rng: np.random.Generator, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Draw training clips uint8 [count, 8, 64, 64, 3] and their labels, half of each label's degraded."""
    first = (seed * CLIPS) % (motions.HELD_OUT - CLIPS)
    clips = np.empty((count, FRAMES, SIZE, SIZE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for k in range(count):
        labels[k] = motions.motion(first + k).label
        # Not every second one: labels follow each other in a fixed order.
        worse = k // len(motions.LABELS) % 2
        clips[k] = _degraded(first + k, rng) if worse else motions.clip(first + k, FRAMES, SIZE)[0]
        if k % 200 == 0:
            report(0.1 * k / count, "drawing clips")
    return clips, labels


def _degraded(seed: int, rng: np.random.Generator) -> np.ndarray:
    """Draw clip `seed` longer and larger, and bring it back as the service does, through JPEG at times."""
    total = int(rng.integers(FRAMES, 4 * FRAMES))
    size = int(rng.choice([64, 96, 128]))
    long = motions.clip(seed, total, size)[0]
    # The middle frame of equal parts.
    part = (total - 1) / FRAMES
    chosen = [round(part * k) + int(part / 2) for k in range(FRAMES)]
    quality = int(rng.integers(40, 96)) if rng.uniform() < 0.5 else None
    return np.stack([_small(long[k], quality) for k in chosen])


def _small(pixels: np.ndarray, quality: int | None) -> np.ndarray:
    picture = Image.fromarray(pixels)
    if quality is not None:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        picture = Image.open(file)
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _varied(
    clips: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror the batch half of the time, labels too, and move it by up to 4 pixels, edges repeated."""
    if rng.uniform() < 0.5:
        clips = clips[:, :, :, ::-1]
        labels = np.array([motions.mirrored(int(label)) for label in labels])
    dx, dy = rng.integers(0, 9, size=2)
    padded = np.pad(clips, ((0, 0), (0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    return padded[:, :, dy : dy + SIZE, dx : dx + SIZE], labels


def _top1(served: Predictor, clips: np.ndarray, truth: np.ndarray) -> float:
    planes = np.ascontiguousarray(clips.transpose(0, 1, 4, 2, 3))
    parts = [planes[k : k + 50] for k in range(0, len(planes), 50)]
    scores = np.concatenate([served.predict({"FRAMES": part})["SCORES"] for part in parts])
    return float((scores.argmax(1) == truth).mean())
