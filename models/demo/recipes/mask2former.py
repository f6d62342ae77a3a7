"""Training of `mask2former-demo`: which colours there are in a scene, and where each of them is.

By transformers' own loss: queries are matched with segments, then judged by class, mask and Dice coefficient after
every layer of the decoder. The background is a segment as well, the only one of stuff.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.demo import segmented
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.descent import descend
from models.demo.recipes.panoptic import HELD_OUT, measure
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.segmentation.mask2former import Mask2Former, build
from service.triton.cards import WeightsRecord

STEPS = 1500
BATCH = 16
LEARNING_RATE = 1e-3
WARM_UP = 0.05


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """Train with AdamW and a one-cycle schedule; see `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    report(0.0, "drawing scenes")
    scenes = segmented.training(seed, min(segmented.COUNT, steps * BATCH))
    paper = architecture("mask2former")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    assert card.image is not None
    on = small_training_device(device)
    normalise = Normalisation(card.image, on)
    learner = build(paper.config("demo")).to(on.torch).train()

    def loss() -> Tensor:
        chosen = rng.integers(len(scenes.pictures), size=BATCH)
        flip = slice(None, None, -1 if rng.uniform() < 0.5 else 1)
        pixels = scenes.pictures[chosen][:, :, flip].transpose(0, 3, 1, 2)
        targets = [
            targets_of(scenes.classes[k][:, flip], scenes.numbers[k][:, flip], on.torch)
            for k in chosen
        ]
        with on.autocast():
            answer = learner(
                pixel_values=normalise(np.ascontiguousarray(pixels)),
                mask_labels=[masks for masks, _ in targets],
                class_labels=[classes for _, classes in targets],
            )
        return cast(Tensor, answer.loss)

    descend(
        learner.parameters(),
        loss,
        steps,
        report,
        learning_rate=LEARNING_RATE,
        warm_up=WARM_UP,
    )

    network = paper.network(paper.config("demo"))
    assert isinstance(network, Mask2Former)
    learned = learner.state_dict()
    network.network.load_state_dict({name: learned[name] for name in network.network.state_dict()})
    save_file(half_precision(network), folder / "model.safetensors")
    report(1.0, "measuring")
    return measure("mask2former", folder, device, min(HELD_OUT, steps * BATCH))


def targets_of(
    classes: np.ndarray, numbers: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the masks float32 [N, S, S] and classes int64 [N] of a scene's segments, the background's first."""
    found = np.unique(numbers)
    masks = numbers == found[:, None, None]
    labels = [int(classes[mask][0]) for mask in masks]
    return (
        torch.from_numpy(masks).to(device, torch.float32),
        torch.tensor(labels, device=device),
    )
