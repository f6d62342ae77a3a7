"""Training of `kmax-deeplab-demo`: which colours there are in a scene, and where each of them is.

As in the paper, queries and segments are matched one to one by what the last layer says, so that the product of class
probability and Dice coefficient is greatest, and that matching holds for all layers. Matched queries learn class and
mask, the others that they are nothing; as each pixel is one query's, masks learn by cross-entropy over the queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from models.demo import segmented
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.descent import descend
from models.demo.recipes.panoptic import HELD_OUT, measure
from models.demo.segmented import CLASSES
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.segmentation._kmax_pixel_decoder import resize
from models.segmentation.kmax_deeplab import KMaXSegmenter
from service.triton.cards import WeightsRecord

STEPS = 900
BATCH = 8
LEARNING_RATE = 2e-3
WARM_UP = 0.1
# Segments of a scene: the background's and those of four objects.
SEGMENTS = 5
# How much the many queries that are nothing count beside those that are something.
VOID_WEIGHT = 0.1
CLASS_WEIGHT, DICE_WEIGHT = 2.0, 3.0
# Side of the masks that are compared, finer than the network's by two.
SIDE = segmented.SIZE // 2


@dataclass(frozen=True)
class Truth:
    """Classes int64 [B, M], -1 for segments that are not there, and masks float32 [B, M, h, w]."""

    classes: Tensor
    masks: Tensor


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """Train with AdamW and a one-cycle schedule; see `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    report(0.0, "drawing scenes")
    scenes = segmented.training(seed, min(segmented.COUNT, steps * BATCH))
    paper = architecture("kmax-deeplab")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    assert card.image is not None
    on = small_training_device(device)
    normalise = Normalisation(card.image, on)
    network = paper.network(paper.config("demo"))
    network = network.to(on.torch, memory_format=torch.channels_last).train()
    assert isinstance(network, KMaXSegmenter)

    def loss() -> Tensor:
        chosen = rng.integers(len(scenes.pictures), size=BATCH)
        flip = slice(None, None, -1 if rng.uniform() < 0.5 else 1)
        pixels = scenes.pictures[chosen][:, :, flip].transpose(0, 3, 1, 2)
        truth = truth_of(
            scenes.classes[chosen][:, :, flip], scenes.numbers[chosen][:, :, flip], on.torch
        )
        with on.autocast():
            answers = network.predictions(normalise(np.ascontiguousarray(pixels)))
        return loss_of(answers, truth)

    descend(
        network.parameters(),
        loss,
        steps,
        report,
        learning_rate=LEARNING_RATE,
        warm_up=WARM_UP,
    )

    save_file(half_precision(network), folder / "model.safetensors")
    report(1.0, "measuring")
    return measure("kmax-deeplab", folder, device, min(HELD_OUT, steps * BATCH))


def truth_of(classes: np.ndarray, numbers: np.ndarray, device: torch.device) -> Truth:
    """Return the segments of scenes, given as class and number of each pixel [B, S, S]."""
    number = torch.from_numpy(numbers.astype(np.int64)).to(device)
    masks = F.one_hot(number, SEGMENTS).movedim(-1, 1).float()
    of_pixel = torch.from_numpy(classes.astype(np.int64)).to(device)
    named = torch.where(masks.bool(), of_pixel[:, None], -1).flatten(2).amax(2)
    return Truth(named, resize(masks, (SIDE, SIDE)))


def loss_of(answers: list[tuple[Tensor, Tensor]], truth: Truth) -> Tensor:
    """Return the mean of the losses of all layers' class logits [B, Q, K + 1] and mask logits [B, Q, h, w]."""
    finer = [(classes.float(), resize(masks.float(), (SIDE, SIDE))) for classes, masks in answers]
    owners = match(*finer[-1], truth)
    return torch.stack([_layer_loss(*layer, truth, owners) for layer in finer]).mean()


@torch.no_grad()
def match(classes: Tensor, masks: Tensor, truth: Truth) -> Tensor:
    """Return which query [B, M] each segment is matched with, -1 where there is no segment."""
    index = truth.classes.clamp(min=0)[:, None].expand(-1, classes.shape[1], -1)
    alike = _dice(masks.softmax(1)[:, :, None], truth.masks[:, None])
    worth = (classes.softmax(-1).gather(2, index) * alike).cpu().numpy()
    owners = torch.full_like(truth.classes, -1)
    for k, there in enumerate((truth.classes >= 0).cpu().numpy()):
        present = there.nonzero()[0]
        queries, segments = linear_sum_assignment(worth[k][:, present], maximize=True)
        owners[k, present[segments]] = torch.from_numpy(queries).to(owners.device)
    return owners


def _layer_loss(classes: Tensor, masks: Tensor, truth: Truth, owners: Tensor) -> Tensor:
    batch, segment = (owners >= 0).nonzero(as_tuple=True)
    query = owners[batch, segment]
    wanted = torch.full(classes.shape[:2], len(CLASSES), device=classes.device)
    wanted[batch, query] = truth.classes[batch, segment]
    weights = torch.ones(classes.shape[-1], device=classes.device)
    weights[-1] = VOID_WEIGHT
    shown = torch.zeros_like(masks)
    shown[batch, query] = truth.masks[batch, segment]
    alike = _dice(masks.softmax(1)[batch, query], truth.masks[batch, segment])
    return (
        CLASS_WEIGHT * F.cross_entropy(classes.flatten(0, 1), wanted.flatten(), weights)
        + DICE_WEIGHT * (1 - alike).mean()
        + F.cross_entropy(masks, shown)
    )


def _dice(shares: Tensor, truth: Tensor) -> Tensor:
    """Return the Dice coefficients over the last two axes."""
    both = (shares * truth).sum((-2, -1))
    return (2 * both + 1) / ((shares + truth).sum((-2, -1)) + 1)
