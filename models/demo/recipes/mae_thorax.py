"""Training of the masked autoencoder on drawn X-rays, without their findings, and of the encoder in it.

Both come from the same training, as in the paper: the restorer is the whole network, the embedding what is
left of it without the decoder. That is measured by a linear probe: a least-squares fit of the findings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from models.classification._mae_thorax_network import (
    MaskedAutoencoder,
    reconstruction_loss,
    to_patches,
)
from models.demo.pictures import RADIOGRAPHS
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.classification import mean_auc
from models.demo.recipes.descent import descend
from models.demo.recipes.restoration import measure_restoration
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

__all__ = ["RECIPES", "measure_encoder", "probe"]

BATCH = 32
PROBED = 1_000
HELD_OUT = 500
AUC = "mean AUC of a linear probe"
AUC_PIXELS = "mean AUC of the same probe on pixels, 8 x 8"

RESTORER, _ENCODER = "mae-thorax-reconstruction", "mae-thorax-encoder"
_RIDGE = 1.0


@dataclass(frozen=True)
class MaskedRadiographs:
    """Trains the `demo` autoencoder and writes what `slug` serves of it; see `models.demo.recipes.Recipe`."""

    slug: str
    STEPS: int = 600
    learning_rate: float = 1.5e-3

    def train(
        self, folder: Path, device: str, seed: int, report: Report, steps: int | None = None
    ) -> dict[str, float]:
        steps = steps or self.STEPS
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        paper, served = architecture(RESTORER), architecture(self.slug)
        card = paper.card("demo", weights=WeightsRecord(kind="demo"))
        assert card.image is not None
        report(0.0, "drawing pictures")
        pixels, _ = RADIOGRAPHS.training(seed, min(RADIOGRAPHS.count, steps * BATCH))
        on = small_training_device(device)
        normalise = Normalisation(card.image, on)
        network = paper.network(paper.config("demo")).to(on.torch).train()
        assert isinstance(network, MaskedAutoencoder)
        share = float(card.parameters["share"].default)

        def loss() -> torch.Tensor:
            shown = pixels[rng.integers(len(pixels), size=BATCH)]
            if rng.uniform() < 0.5:
                shown = shown[:, :, ::-1]
            image = normalise(np.ascontiguousarray(shown.transpose(0, 3, 1, 2)))
            with on.autocast():
                made = network(image, share=share)
            return reconstruction_loss(
                image, made.patches.float(), made.masking.hidden, network.patch_size
            )

        descend(network.parameters(), loss, steps, report, learning_rate=self.learning_rate)
        state = half_precision(network)
        if self.slug == _ENCODER:
            state = served.translate(state, served.config("demo"))
        save_file(state, folder / "model.safetensors")
        report(1.0, "measuring")
        count = min(HELD_OUT, steps * BATCH)
        if self.slug == _ENCODER:
            return measure_encoder(folder, device, min(PROBED, steps * BATCH), count, seed)
        return measure_restoration(self.slug, folder, RADIOGRAPHS, device, count)


def measure_encoder(
    folder: Path, device: str = "cpu", probed: int = PROBED, count: int = HELD_OUT, seed: int = 0
) -> dict[str, float]:
    """Return the mean AUC on `count` held-out pictures of a probe that has seen `probed` of the training's."""
    paper = architecture(_ENCODER)
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    # The even ones are as drawn, like those held out.
    seen, findings = (part[::2] for part in RADIOGRAPHS.training(seed, 2 * probed))
    held_out = RADIOGRAPHS.held_out(count)

    def vectors(pictures: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
        parts = [planes[k : k + 100] for k in range(0, len(planes), 100)]
        return np.concatenate([served.predict({"IMAGE": part})["EMBEDDING"] for part in parts])

    def small(pictures: np.ndarray) -> np.ndarray:
        grey = torch.from_numpy(pictures[..., :1].astype(np.float32).transpose(0, 3, 1, 2))
        return to_patches(grey, 8).mean(2).numpy()

    return {
        name: mean_auc(probe(of(seen), findings, of(held_out.clean)), held_out.truth)
        for name, of in ((AUC, vectors), (AUC_PIXELS, small))
    }


def probe(vectors: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Fit labels [N, C] linearly to vectors [N, D], with a slight penalty, and return the scores of others [M, C]."""
    mean, deviation = vectors.mean(0), vectors.std(0) + 1e-6

    def scaled(rows: np.ndarray) -> np.ndarray:
        rows = (rows - mean).astype(np.float64) / deviation
        return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)

    rows = scaled(vectors)
    weights = np.linalg.solve(rows.T @ rows + _RIDGE * np.eye(rows.shape[1]), rows.T @ labels)
    return scaled(others) @ weights


# By model id.
RECIPES = {f"{slug}-demo": MaskedRadiographs(slug) for slug in (RESTORER, _ENCODER)}
