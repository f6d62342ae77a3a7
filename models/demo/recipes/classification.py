"""Training of the demo classifiers of pictures: they name the colour and the shape of one drawn object.

Half of the pictures are drawn larger and scaled down, blurred, noisy or through JPEG, so that the
network also judges pictures that a generator made or a browser sent.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.torch import save_file
from torch.nn import functional as F

from models.architecture import Architecture
from models.demo import shapes
from models.demo.recipes import Report, training_device
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import Card, WeightsRecord

BATCH = 32
PICTURES = 16_000
WARM_UP = 0.05
HELD_OUT_PICTURES = 2_000


@dataclass(frozen=True)
class Shapes:
    """Trains the `demo` variant of `slug` with AdamW and a cosine schedule; see `models.demo.recipes.Recipe`.

    The variant takes 64 x 64 pictures and has the labels of `models.demo.shapes`.
    """

    slug: str
    STEPS: int = 4000
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
        pixels, labels = _pictures(seed, min(PICTURES, steps * BATCH), rng, report)
        on = training_device(device)
        network = paper.network(paper.config("demo"))
        network = network.to(on.torch, memory_format=torch.channels_last).train()
        self._fit(network, card, pixels, labels, steps, rng, on, report)

        state = {
            name: value.half().cpu().contiguous() if value.is_floating_point() else value.cpu()
            for name, value in network.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")
        report(1.0, "measuring")
        return measure(paper, card, folder, Device(device), min(HELD_OUT_PICTURES, steps * BATCH))

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
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.learning_rate, total_steps=max(steps, 2), pct_start=WARM_UP
        )
        for step in range(steps):
            chosen = rng.integers(len(labels), size=BATCH)
            image = normalise(_shifted(pixels[chosen], rng).transpose(0, 3, 1, 2))
            truth = torch.from_numpy(labels[chosen]).to(device.torch)
            with device.autocast():
                logits = network(image)
            loss = F.cross_entropy(logits.float(), truth, label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % 10 == 0:
                report(0.05 + 0.95 * step / steps, f"step {step}/{steps}, loss {loss.item():.3f}")


# By model id.
RECIPES = {"convnext-demo": Shapes("convnext")}


def measure(
    paper: Architecture, card: Card, folder: Path, device: Device, count: int
) -> dict[str, float]:
    """Return top-1 of the weights in `folder` on `count` held-out pictures, as drawn and degraded."""
    served = paper.load(card, folder, device)
    assert isinstance(served, Predictor)
    rng = np.random.default_rng(shapes.HELD_OUT)
    drawn = [shapes.draw(shapes.HELD_OUT + k) for k in range(count)]
    truth = np.array([scene.label for _, scene in drawn])
    clean = np.stack([pixels for pixels, _ in drawn])
    worse = np.stack([_degraded(shapes.HELD_OUT + k, rng) for k in range(count)])
    return {
        "top-1": _top1(served, clean, truth),
        "top-1, degraded pictures": _top1(served, worse, truth),
    }


def _pictures(
    seed: int, count: int, rng: np.random.Generator, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Draw training pictures uint8 [count, 64, 64, 3] and their labels, every second one degraded."""
    first = (seed * PICTURES) % (shapes.HELD_OUT - PICTURES)
    pixels, labels = np.empty((count, 64, 64, 3), np.uint8), np.empty(count, np.int64)
    for k in range(count):
        pixels[k], scene = shapes.draw(first + k)
        labels[k] = scene.label
        if k % 2:
            pixels[k] = _degraded(first + k, rng)
        if k % 500 == 0:
            report(0.05 * k / count, "drawing pictures")
    return pixels, labels


def _degraded(seed: int, rng: np.random.Generator) -> np.ndarray:
    """Draw scene `seed` and let it suffer as pictures do on their way to the service."""
    size = int(rng.choice([64, 64, 96, 128, 256]))
    picture = Image.fromarray(shapes.draw(seed, size)[0])
    if rng.uniform() < 0.5:
        radius = rng.uniform(0.0, 1.2) * size / 64
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    if rng.uniform() < 0.5:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.88, 1.12))
        picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.85, 1.15))
    if rng.uniform() < 0.3:
        noise = rng.normal(0.0, rng.uniform(2.0, 12.0), size=(size, size, 3))
        noisy = np.asarray(picture, dtype=np.float64) + noise
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if rng.uniform() < 0.5:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(35, 96)))
        picture = Image.open(file)
    return np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC))


def _shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror the batch half of the time and move it by up to 4 pixels, edges repeated."""
    if rng.uniform() < 0.5:
        pixels = pixels[:, :, ::-1]
    dx, dy = rng.integers(0, 9, size=2)
    padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    return padded[:, dy : dy + 64, dx : dx + 64]


def _top1(served: Predictor, pixels: np.ndarray, truth: np.ndarray) -> float:
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    parts = [planes[k : k + 100] for k in range(0, len(planes), 100)]
    scores = np.concatenate([served.predict({"IMAGE": part})["SCORES"] for part in parts])
    return float((scores.argmax(1) == truth).mean())
