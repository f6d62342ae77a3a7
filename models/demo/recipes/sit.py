"""Training of the demo SiT: drawings of one thing shall lie together, and blanked blocks are restored.

As in the paper, both are learned at once by one network, of which the embedding keeps the backbone and the
restorer the backbone and the restoring head. Unlike there, the two views of a thing are two drawings with one label,
not two cuts of one photograph: a drawing has too little in it to be told from others by its cuts. The labels in
`UNSEEN` are left out, so that few examples of them show what the embedding is good for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from models.demo import shapes
from models.demo.pictures import SHAPES
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.descent import descend
from models.demo.recipes.restoration import measure_restoration
from models.layers.pixels import Normalisation
from models.reconstruction.sit_reconstruction import SHARE, blocks
from models.registry import architecture
from models.serving import Device, Predictor
from service.tasks.embed.vectors import prototypes, unit
from service.triton.cards import WeightsRecord

__all__ = ["EXAMPLES", "RECIPES", "UNSEEN", "few_shot", "measure_embedding"]

PAIRS = 16
HELD_OUT = 500
EXAMPLES = 5
TEMPERATURE = 0.2
RESTORING = 0.5
# One of each colour and of each shape.
UNSEEN = tuple(
    shapes.label(shape, colour) for shape, colour in zip(shapes.SHAPES, shapes.COLOURS, strict=True)
)
ALL_LABELS = f"top-1 among all 36 labels by {EXAMPLES} examples of each"
UNSEEN_LABELS = f"top-1 among 6 labels never seen in training by {EXAMPLES} examples of each"

_EMBEDDING, _RESTORER = "sit", "sit-reconstruction"
_MASKS = 512


@dataclass(frozen=True)
class ShapesOfSiT:
    """Trains the `demo` network with both heads, and writes what `slug` serves of it; see `models.demo.recipes.Recipe`."""

    slug: str
    STEPS: int = 3000
    learning_rate: float = 1.5e-3

    def train(
        self, folder: Path, device: str, seed: int, report: Report, steps: int | None = None
    ) -> dict[str, float]:
        steps = steps or self.STEPS
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        whole, served = architecture(_EMBEDDING), architecture(self.slug)
        card = whole.card("demo", weights=WeightsRecord(kind="demo"))
        assert card.image is not None
        report(0.0, "drawing pictures")
        pixels, labels = SHAPES.training(seed, min(SHAPES.count, 2 * PAIRS * steps))
        on = small_training_device(device)
        normalise = Normalisation(card.image, on)
        config = whole.config("demo") | {"head": "pretraining", "hidden_dim": 192, "out_dim": 64}
        network = whole.network(config).to(on.torch).train()
        masks = _masks((card.image.height, card.image.width), rng).to(on.torch)
        of_label = {k: np.flatnonzero(labels == k) for k in np.unique(labels) if k not in UNSEEN}

        def loss() -> torch.Tensor:
            things = rng.permutation(list(of_label))[:PAIRS]
            chosen = np.concatenate([rng.choice(of_label[k], 2) for k in things])
            image = normalise(np.ascontiguousarray(pixels[chosen].transpose(0, 3, 1, 2)))
            hidden = masks[torch.from_numpy(rng.integers(_MASKS, size=len(image)))][:, None]
            with on.autocast():
                vectors, restored = network(image.masked_fill(hidden, 0.0))
            error = ((restored.float() - image).abs() * hidden).sum() / (3 * hidden.sum())
            return _apart(vectors.float()) + RESTORING * error

        descend(network.parameters(), loss, steps, report, learning_rate=self.learning_rate)
        state = served.translate(half_precision(network), served.config("demo"))
        save_file(state, folder / "model.safetensors")
        report(1.0, "measuring")
        count = min(HELD_OUT, 2 * PAIRS * steps)
        if self.slug == _RESTORER:
            return measure_restoration(self.slug, folder, SHAPES, device, count)
        return measure_embedding(folder, device)


def measure_embedding(folder: Path, device: str = "cpu", count: int = 1000) -> dict[str, float]:
    """Return how many of `count` held-out pictures get their label by examples, with the weights in `folder`."""
    paper = architecture(_EMBEDDING)
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    held_out = SHAPES.held_out(count)
    planes = np.ascontiguousarray(held_out.clean.transpose(0, 3, 1, 2))
    parts = [planes[k : k + 100] for k in range(0, len(planes), 100)]
    vectors = np.concatenate([served.predict({"IMAGE": part})["EMBEDDING"] for part in parts])
    unseen = np.isin(held_out.truth, UNSEEN)
    return {
        ALL_LABELS: few_shot(vectors, held_out.truth),
        UNSEEN_LABELS: few_shot(vectors[unseen], held_out.truth[unseen]),
    }


def few_shot(vectors: np.ndarray, truth: np.ndarray, examples: int = EXAMPLES) -> float:
    """Return top-1 of vectors [N, D] by the prototypes of the first `examples` of each label, on the others."""
    first = np.zeros(len(truth), bool)
    for label in np.unique(truth):
        first[np.flatnonzero(truth == label)[:examples]] = True
    names, directions = prototypes(vectors[first], [str(label) for label in truth[first]])
    nearest = (unit(vectors[~first]) @ directions.T).argmax(1)
    return float((np.array(names, int)[nearest] == truth[~first]).mean())


def _apart(vectors: torch.Tensor) -> torch.Tensor:
    """Return the loss of pairs in a row [2 * pairs, D]: each vector shall be nearer to its other than to all else."""
    directions = F.normalize(vectors, dim=1)
    near = directions @ directions.T / TEMPERATURE
    near.fill_diagonal_(-torch.inf)
    other = torch.arange(len(vectors), device=vectors.device) ^ 1
    return F.cross_entropy(near, other)


def _masks(size: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
    """Draw what may be hidden of a picture, up to the paper's share: bool [masks, H, W]."""
    stream = torch.Generator().manual_seed(int(rng.integers(2**31)))
    shares = rng.uniform(0.0, SHARE, size=_MASKS)
    return torch.stack([blocks(size, float(share), stream) for share in shares])


# By model id.
RECIPES = {f"{slug}-demo": ShapesOfSiT(slug) for slug in (_EMBEDDING, _RESTORER)}
