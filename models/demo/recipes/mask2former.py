"""Training of `mask2former-demo`: which colours there are in a scene, and where each of them is.

By transformers' own loss: queries are matched with segments, then judged by class, mask and Dice coefficient after
every layer of the decoder. The background is a segment as well, the only one of stuff.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchmetrics.functional.detection import panoptic_quality

from models.demo import segmented
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.segmented import CLASSES, Segmented
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.segmentation.mask2former import Mask2Former, build
from models.serving import Arrays, Device, Predictor
from service.triton.cards import WeightsRecord

STEPS = 1500
HELD_OUT = 200
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
    optimiser = torch.optim.AdamW(
        learner.parameters(), lr=LEARNING_RATE, weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=max(steps, 2), pct_start=WARM_UP
    )
    for step in range(steps):
        chosen = rng.integers(len(scenes.pictures), size=BATCH)
        flip = slice(None, None, -1 if rng.uniform() < 0.5 else 1)
        pixels = scenes.pictures[chosen][:, :, flip].transpose(0, 3, 1, 2)
        targets = [
            targets_of(scenes.classes[k][:, flip], scenes.numbers[k][:, flip], on.torch)
            for k in chosen
        ]
        with on.autocast():
            loss = learner(
                pixel_values=normalise(np.ascontiguousarray(pixels)),
                mask_labels=[masks for masks, _ in targets],
                class_labels=[classes for _, classes in targets],
            ).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 10 == 0:
            report(step / steps, f"step {step}/{steps}, loss {loss.item():.3f}")

    network = paper.network(paper.config("demo"))
    assert isinstance(network, Mask2Former)
    learned = learner.state_dict()
    network.network.load_state_dict({name: learned[name] for name in network.network.state_dict()})
    save_file(half_precision(network), folder / "model.safetensors")
    report(1.0, "measuring")
    return measure(folder, device, min(HELD_OUT, steps * BATCH))


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


def measure(folder: Path, device: str = "cpu", count: int = HELD_OUT) -> dict[str, float]:
    """Return the scores of the weights in `folder` on `count` held-out scenes."""
    paper = architecture("mask2former")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    scenes = segmented.drawn(segmented.HELD_OUT, count)
    pixels = np.ascontiguousarray(scenes.pictures.transpose(0, 3, 1, 2))
    answers = [served.predict({"IMAGE": pixels[k : k + 1]}) for k in range(count)]
    return scores([panoptic_map(answer) for answer in answers], scenes)


def panoptic_map(answer: Arrays) -> np.ndarray:
    """Return class and number [H, W, 2] of each pixel of an answer to one picture; background where there is nothing."""
    mask = np.asarray(answer["MASK"][0])
    classes = np.zeros_like(mask)
    for id, index, _ in np.asarray(answer["SEGMENTS"][0]):
        classes[mask == id] = index
    return np.stack([classes, np.where(classes > 0, mask, 0)], -1)


def scores(found: list[np.ndarray], scenes: Segmented) -> dict[str, float]:
    """Return mean intersection over union of the classes, and panoptic quality, of maps [H, W, 2] as `panoptic_map`'s."""
    maps = torch.from_numpy(np.stack(found)).long()
    truth = torch.from_numpy(np.stack([scenes.classes, scenes.numbers], -1)).long()
    overlap = multiclass_jaccard_index(maps[..., 0], truth[..., 0], len(CLASSES))
    quality = panoptic_quality(maps, truth, things=set(range(1, len(CLASSES))), stuffs={0})
    return {"mIoU": float(overlap), "PQ": float(quality)}
