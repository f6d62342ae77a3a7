"""Training of the demo T-TAME: a classifier of drawn shapes, then the branch that explains it.

The branch learns as in the paper, with its loss: the picture, darkened where the map of the most probable class is
low, shall still be that class, by a map that is small and smooth. The classifier stays as it is meanwhile.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from models.demo import shapes
from models.demo.pictures import SHAPES
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.classification import shape_loss, top1
from models.demo.recipes.descent import descend
from models.explanation.t_tame import ExplainedClassifier
from models.faithfulness import faithfulness
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.serving import Arrays, Device, Predictor
from service.triton.cards import WeightsRecord

__all__ = ["STEPS", "measure", "train"]

STEPS = 4000
BATCH = 32
HELD_OUT = 300
ON_SHAPE = "share of the map on the shape"
SHAPE_SHARE = "share of the picture with a part of the shape"
# The classifier's part of the steps.
_CLASSIFYING = 0.8
# Of the cross-entropy, of the map's area (the mean of its power) and of its unevenness.
_RIGHT, _AREA, _POWER, _UNEVEN = 1.5, 2.0, 0.3, 0.01
_KEPT = (1.0, 0.5)


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """See `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    paper = architecture("t-tame")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    assert card.image is not None
    report(0.0, "drawing pictures")
    pixels, labels = SHAPES.training(seed, min(SHAPES.count, steps * BATCH))
    on = small_training_device(device)
    normalise = Normalisation(card.image, on)
    network = paper.network(paper.config("demo")).to(on.torch).train()
    assert isinstance(network, ExplainedClassifier)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = rng.integers(len(labels), size=BATCH)
        shown = pixels[chosen]
        if rng.uniform() < 0.5:
            shown = shown[:, :, ::-1]
        image = normalise(np.ascontiguousarray(shown.transpose(0, 3, 1, 2)))
        return image, torch.from_numpy(labels[chosen]).to(on.torch)

    def classified() -> torch.Tensor:
        image, truth = batch()
        return shape_loss(network.body(image), truth)

    black = normalise(np.zeros((1, 3, card.image.height, card.image.width), np.uint8))

    def explained() -> torch.Tensor:
        image, _ = batch()
        with torch.no_grad():
            logits, features = network.features(image)
        best = logits.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        share = network.attn_mech(features)[rows, best].sigmoid()  # B, h, w
        grown = F.interpolate(share[:, None], image.shape[2:], mode="bilinear", align_corners=False)
        again = network.body(black + (image - black) * grown)
        uneven = share.diff(dim=1).square().sum((1, 2)) + share.diff(dim=2).square().sum((1, 2))
        return (
            _RIGHT * F.cross_entropy(again, best)
            + _AREA * share.pow(_POWER).mean()
            + _UNEVEN * uneven.mean()
        )

    first = max(1, round(steps * _CLASSIFYING))
    descend(
        network.body.parameters(),
        classified,
        first,
        report,
        learning_rate=1e-3,
        shares=(0.0, _CLASSIFYING),
    )
    network.body.eval().requires_grad_(False)
    descend(
        network.attn_mech.parameters(),
        explained,
        max(1, steps - first),
        report,
        learning_rate=2e-3,
        shares=(_CLASSIFYING, 1.0),
    )
    save_file(half_precision(network), folder / "model.safetensors")
    report(1.0, "measuring")
    return measure(folder, device, min(HELD_OUT, steps * BATCH))


class _Uniform(Predictor):
    """The same classifier with maps of the same mean, which tell nothing."""

    def __init__(self, served: Predictor) -> None:
        self._served = served

    def predict(self, batch: Arrays) -> Arrays:
        answer = self._served.predict(batch)
        mean = answer["HEATMAP"].mean((1, 2), keepdims=True)
        return answer | {"HEATMAP": np.broadcast_to(mean, answer["HEATMAP"].shape).copy()}


def measure(folder: Path, device: str = "cpu", count: int = HELD_OUT) -> dict[str, float]:
    """Return, for the weights in `folder` and held-out pictures: the classifier's top-1; Average Drop and Increase
    in Confidence (per cent) of its maps and of uniform ones of the same mean; and which share of a map
    lies on the drawn shape."""
    paper = architecture("t-tame")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    drawn, scenes = shapes.batch(shapes.HELD_OUT, count)
    planes = np.ascontiguousarray(drawn.transpose(0, 3, 1, 2))
    parts = [served.predict({"IMAGE": planes[k : k + 50]}) for k in range(0, count, 50)]
    scores, maps = (
        np.concatenate([part[name] for part in parts]) for name in ("SCORES", "HEATMAP")
    )
    truth = np.array([scene.label for scene in scenes])
    on, covered = _on_shape(maps, scenes)
    found = {"top-1": top1(scores, truth), ON_SHAPE: on, SHAPE_SHARE: covered}
    for name, explained in (("", served), (", uniform map", _Uniform(served))):
        for each in faithfulness(explained, planes, _KEPT):
            found[f"Average Drop, {each.kept:.0%} kept{name}"] = each.average_drop
            found[f"Increase in Confidence, {each.kept:.0%} kept{name}"] = (
                each.increase_in_confidence
            )
    return found


def _on_shape(maps: np.ndarray, scenes: list[shapes.Scene]) -> tuple[float, float]:
    """Return which share of the maps [N, h, w] lies where a part of the shape is, and how large that place is."""
    on, covered = [], []
    for heat, scene in zip(maps, scenes, strict=True):
        step = scene.size // heat.shape[0]
        place = scene.mask(0).reshape(heat.shape[0], step, heat.shape[1], step).any((1, 3))
        on.append(heat[place].sum() / heat.sum())
        covered.append(place.mean())
    return float(np.mean(on)), float(np.mean(covered))
