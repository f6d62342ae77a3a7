"""Training of the demo detector: boxes, names and masks of drawn shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from models.demo import scenes, shapes
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.average_precision import ap50
from models.demo.recipes.classification import shape_loss
from models.demo.recipes.descent import descend
from models.demo.recipes.detection_loss import Objects, detection_loss
from models.detection._mask_rcnn import MaskRCNN
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

SLUG = "convnext-detection"
STEPS = 1500
BATCH = 8
SCENES = 1_500
HELD_OUT_SCENES = 300
LEARNING_RATE = 2e-3
WARM_UP = 0.05


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """See `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    paper = architecture(SLUG)
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    report(0.0, "drawing scenes")
    drawn = scenes.training(seed, min(SCENES, steps * BATCH))
    on = small_training_device(device)
    network = paper.network(paper.config("demo")).to(on.torch).train()
    assert isinstance(network, MaskRCNN)
    assert card.image is not None
    normalise = Normalisation(card.image, on)

    def loss() -> torch.Tensor:
        pictures, truth = _batch(drawn, rng)
        with on.autocast():
            objects = [_moved(each, on) for each in truth]
            return detection_loss(network, normalise(pictures), objects, shape_loss)

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
    return measure(folder, device, min(HELD_OUT_SCENES, steps * BATCH))


def measure(folder: Path, device: str = "cpu", count: int = HELD_OUT_SCENES) -> dict[str, float]:
    """Return the average precision (overlap 0.5) of the weights in `folder` on `count` held-out scenes."""
    paper = architecture(SLUG)
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    truth, found = [], []
    for seed in range(scenes.HELD_OUT, scenes.HELD_OUT + count):
        pixels, objects = scenes.draw(seed)
        named = [shapes.LABELS.index(one.name) for one in objects]
        truth.append((np.array([one.box for one in objects]), np.array(named, np.int64)))
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]
        answer = served.predict({"IMAGE": planes, "THRESHOLD": np.float32([[0.05]])})
        scores = np.asarray(answer["SCORES"])[0]
        real = scores > 0
        boxes = np.asarray(answer["BOXES"])[0, real] * scenes.SIZE
        found.append((boxes, np.asarray(answer["CLASSES"])[0, real], scores[real]))
    return {"AP50": ap50(truth, found)}


def _batch(drawn: scenes.Scenes, rng: np.random.Generator) -> tuple[np.ndarray, list[Objects]]:
    """Return pictures [B, 3, S, S] by chance, mirrored half of the time, and their objects."""
    chosen = rng.integers(len(drawn), size=BATCH)
    pictures, boxes, owners = drawn.pictures[chosen], drawn.boxes[chosen], drawn.owners[chosen]
    if rng.uniform() < 0.5:
        pictures, owners = pictures[:, :, ::-1], owners[:, :, ::-1]
        boxes = boxes[..., [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1])
        boxes += np.float32([scenes.SIZE, 0, scenes.SIZE, 0])
    truth = []
    for named, box, owner in zip(drawn.classes[chosen], boxes, owners, strict=True):
        count = int((named >= 0).sum())
        masks = owner == np.arange(1, count + 1, dtype=np.uint8)[:, None, None]
        truth.append(
            Objects(
                torch.from_numpy(box[:count].copy()),
                torch.from_numpy(named[:count].copy()),
                torch.from_numpy(masks),
            )
        )
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), truth


def _moved(objects: Objects, device: Device) -> Objects:
    on = device.torch
    return Objects(objects.boxes.to(on), objects.classes.to(on), objects.masks.to(on))
