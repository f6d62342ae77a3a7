"""Training of the demo TOV-VICReg on drawn clips: views of a frame lie together, and the order of three is told.

The paper's two tasks at once, with its losses; the projector is left behind. Only clips whose order can be seen are
shown: what moves, grows or shrinks, not what stands still or turns about itself. Half of the threes are in
order instead of the paper's sixth, so that the probability has its threshold at one half.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from models.demo import motions
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.auc import auc
from models.demo.recipes.descent import descend
from models.embedding.tov_vicreg import TOVVICReg
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

__all__ = ["STEPS", "measure", "observations", "ordered_seeds", "train"]

STEPS = 3000
BATCH = 16
CLIPS = 3000
HELD_OUT_CLIPS = 300
LEARNING_RATE = 1e-3
AUC = "AUC of the order of three observations"
ACCURACY = "accuracy of the order of three observations"

SIZE = 84
_FRAMES = 9
_KINDS = ("moves", "grows", "shrinks")
_IN_ORDER, *_WRONG = permutations(range(3))
_PROJECTION = (128, 128, 128)
# Of VICReg's three losses, and of all of them beside that of the order.
_INVARIANCE, _VARIANCE, _COVARIANCE = 25.0, 25.0, 1.0
_VICREG = 0.01


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """See `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    paper = architecture("tov-vicreg")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    assert card.image is not None
    first = (seed * 2 * CLIPS) % (motions.HELD_OUT - 2 * CLIPS)
    report(0.0, "drawing clips")
    clips = np.stack([observations(k) for k in ordered_seeds(first, min(CLIPS, steps * BATCH))])
    on = small_training_device(device)
    normalise = Normalisation(card.image, on)
    network = paper.network(paper.config("demo") | {"projection": _PROJECTION}).to(on.torch).train()
    assert isinstance(network, TOVVICReg)

    def loss() -> torch.Tensor:
        shown = _turned(clips[rng.integers(len(clips), size=BATCH)], rng)  # B, 3 in a row, 3, H, W
        orders = np.array([_order(k % 2 == 0, rng) for k in range(BATCH)])
        rows = np.take_along_axis(shown, orders[:, :, None, None, None], axis=1)
        views = np.concatenate([rows.reshape(-1, *rows.shape[2:]), _other_view(rows[:, 1], rng)])
        with on.autocast():
            vectors, _ = network.represent(normalise(np.ascontiguousarray(views)))
            before, now, after = vectors[: 3 * BATCH].unflatten(0, (BATCH, 3)).unbind(1)
            wrong = network.disorder(now, before, after)
            projected = [network.projector(part) for part in (now, vectors[3 * BATCH :])]
        truth = torch.tensor([float(k % 2) for k in range(BATCH)], device=wrong.device)
        told = F.binary_cross_entropy_with_logits(wrong[:, 0].float(), truth)
        return told + _VICREG * _vicreg(projected[0].float(), projected[1].float())

    descend(network.parameters(), loss, steps, report, learning_rate=LEARNING_RATE)
    state = paper.translate(half_precision(network), paper.config("demo"))
    save_file(state, folder / "model.safetensors")
    report(1.0, "measuring")
    return measure(folder, device, min(HELD_OUT_CLIPS, steps * BATCH))


def measure(folder: Path, device: str = "cpu", count: int = HELD_OUT_CLIPS) -> dict[str, float]:
    """Return how well the weights in `folder` tell `count` held-out clips in order from the same in another order."""
    paper = architecture("tov-vicreg")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    rng = np.random.default_rng(motions.HELD_OUT)
    right, wrong = [], []
    for seed in ordered_seeds(motions.HELD_OUT, count):
        clip = observations(seed)
        shown = np.stack([clip, clip[list(_order(False, rng))]])
        answer = served.predict({"BEFORE": shown[:, 0], "IMAGE": shown[:, 1], "AFTER": shown[:, 2]})
        in_order, mixed = answer["IN_ORDER"][:, 0]
        right.append(in_order)
        wrong.append(mixed)
    accuracy = (np.mean(np.array(right) >= 0.5) + np.mean(np.array(wrong) < 0.5)) / 2
    return {AUC: auc(np.array(wrong), np.array(right)), ACCURACY: float(accuracy)}


def ordered_seeds(first: int, count: int) -> list[int]:
    """Return the first `count` seeds from `first` on of clips whose order can be seen."""
    found: list[int] = []
    while len(found) < count:
        if motions.LABELS[first % len(motions.LABELS)].startswith(_KINDS):
            found.append(first)
        first += 1
    return found


def observations(seed: int) -> np.ndarray:
    """Draw clip `seed` as three observations in a row of three grey frames each, uint8 [3, 3, 84, 84]."""
    drawn = motions.frames(seed, _FRAMES, SIZE)
    grey = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in drawn])
    return grey.reshape(3, 3, SIZE, SIZE)


def _order(right: bool, rng: np.random.Generator) -> tuple[int, ...]:
    return _IN_ORDER if right else _WRONG[int(rng.integers(len(_WRONG)))]


def _turned(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror the clips [B, 3, 3, H, W] either way, or about the diagonal, by chance."""
    if rng.uniform() < 0.5:
        clips = clips.swapaxes(-1, -2)
    for axis in (-1, -2):
        if rng.uniform() < 0.5:
            clips = np.flip(clips, axis)
    return clips


def _other_view(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the observations [B, 3, H, W] moved by up to 4 pixels, in another light."""
    dx, dy = rng.integers(0, 9, size=2)
    padded = np.pad(frames, ((0, 0), (0, 0), (4, 4), (4, 4)), mode="edge")
    moved = padded[:, :, dy : dy + SIZE, dx : dx + SIZE]
    gain = rng.uniform(0.7, 1.2, size=(len(frames), 1, 1, 1))
    return np.clip(moved * gain, 0, 255).astype(np.uint8)


def _vicreg(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Invariance, variance and covariance of two projections [B, D]."""
    loss = _INVARIANCE * F.mse_loss(first, second)
    for vectors in (first, second):
        centred = vectors - vectors.mean(0)
        deviation = (centred.var(0) + 1e-4).sqrt()
        loss = loss + _VARIANCE * F.relu(1 - deviation).mean() / 2
        covariance = centred.T @ centred / (len(vectors) - 1)
        apart = covariance - covariance.diag().diag()
        loss = loss + _COVARIANCE * apart.square().sum() / vectors.shape[1]
    return loss
