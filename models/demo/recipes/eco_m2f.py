"""Training of `eco-m2f-demo`: colours in scenes, by an encoder that pictures leave early.

First the segmenter learns with every picture leaving at a depth drawn by lot, so that it can be left anywhere. Then,
as in the paper, each picture's best depth is that of the greatest panoptic quality less a price for each layer, and the
gate learns to tell it. Losses are transformers' own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from models.demo import segmented
from models.demo.recipes import Report, half_precision, small_training_device
from models.demo.recipes.descent import descend
from models.demo.recipes.mask2former import targets_of
from models.demo.recipes.panoptic import HELD_OUT, panoptic_map, scores
from models.demo.segmented import Segmented
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.segmentation._eco_m2f_network import EcoMask2Former, EcoSegmenter, network_config
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

STEPS = 900
BATCH = 8
LEARNING_RATE = 1e-3
WARM_UP = 0.05
# Points of a mask at which the loss looks.
POINTS = 256
# What a further layer must add to the panoptic quality of a scene to be worth its time.
LAYER_PRICE = 0.005
GATE_SCENES = 200
GATE_STEPS = 300


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """Train with AdamW and a one-cycle schedule; see `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    report(0.0, "drawing scenes")
    scenes = segmented.training(seed, min(segmented.COUNT, steps * BATCH))
    paper = architecture("eco-m2f")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    assert card.image is not None
    on = small_training_device(device)
    normalise = Normalisation(card.image, on)
    network = paper.network(paper.config("demo")).to(on.torch).train()
    assert isinstance(network, EcoSegmenter)
    loss_of = _Loss(on)

    def loss() -> Tensor:
        chosen = rng.integers(len(scenes.pictures), size=BATCH)
        flip = slice(None, None, -1 if rng.uniform() < 0.5 else 1)
        image = normalise(
            np.ascontiguousarray(scenes.pictures[chosen][:, :, flip].transpose(0, 3, 1, 2))
        )
        targets = [
            targets_of(scenes.classes[k][:, flip], scenes.numbers[k][:, flip], on.torch)
            for k in chosen
        ]
        depths = torch.from_numpy(rng.integers(network.exits.start, network.exits.stop, BATCH))
        with on.autocast():
            answers = network.segments(network.features(image), depths.to(on.torch))
        return loss_of(answers, targets)

    descend(
        network.parameters(),
        loss,
        steps,
        report,
        learning_rate=LEARNING_RATE,
        warm_up=WARM_UP,
    )

    report(1.0, "training the gate")
    _train_gate(network, scenes, min(GATE_SCENES, steps * BATCH), on)
    save_file(half_precision(network), folder / "model.safetensors")
    report(1.0, "measuring")
    return measure(folder, device, min(HELD_OUT, steps * BATCH))


def measure(
    folder: Path, device: str = "cpu", count: int = HELD_OUT, depth: int = 0
) -> dict[str, float]:
    """Return the scores of the weights in `folder` on `count` held-out scenes, at one depth or (0) the gate's."""
    paper = architecture("eco-m2f")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    scenes = segmented.drawn(segmented.HELD_OUT, count)
    found, used = _answers(served, scenes, count, depth)
    return scores(found, scenes) | {"mean depth": float(np.mean(used))}


class _Loss:
    """transformers' loss of the answers after every layer of the decoder."""

    def __init__(self, device: Device) -> None:
        config = network_config(architecture("eco-m2f").config("demo"))
        config.train_num_points = POINTS
        self._weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self._criterion = Mask2FormerLoss(config, self._weights).to(device.torch)

    def __call__(
        self, answers: list[tuple[Tensor, Tensor]], targets: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        named = [
            {"class_queries_logits": classes.float(), "masks_queries_logits": masks.float()}
            for classes, masks in answers
        ]
        losses = self._criterion(
            **named[-1],
            mask_labels=[masks for masks, _ in targets],
            class_labels=[classes for _, classes in targets],
            auxiliary_predictions=named[:-1],
        )
        weighted = [
            weight * loss
            for kind, weight in self._weights.items()
            for name, loss in losses.items()
            if name.startswith(kind)
        ]
        return torch.stack(weighted).sum()


def _train_gate(network: EcoMask2Former, scenes: Segmented, count: int, device: Device) -> None:
    network.eval()
    paper = architecture("eco-m2f")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.serve(network, card, device, Path())
    assert isinstance(served, Predictor)
    assert card.image is not None
    worth = np.empty((count, len(network.exits)))
    for index, depth in enumerate(network.exits):
        found, _ = _answers(served, scenes, count, depth)
        for k in range(count):
            one = Segmented(*(part[k : k + 1] for part in vars(scenes).values()))
            worth[k, index] = scores([found[k]], one)["PQ"] - LAYER_PRICE * depth
    best = torch.from_numpy(worth.argmax(1)).to(device.torch)
    normalise = Normalisation(card.image, device)
    projection = network.pixel_level_module.decoder.input_projections[0]
    with torch.no_grad():
        means = [
            projection(network.features(normalise(_planes(scenes, k)))[-1]).mean((2, 3))
            for k in range(count)
        ]
    tokens = torch.cat(means)
    gate = network.encoder.gate
    optimiser = torch.optim.AdamW(gate.parameters(), lr=1e-2)
    for _ in range(GATE_STEPS):
        loss = F.cross_entropy(gate(tokens), best)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def _answers(
    served: Predictor, scenes: Segmented, count: int, depth: int
) -> tuple[list[np.ndarray], list[int]]:
    """Return maps as `panoptic_map`'s of the first scenes, and the depths that were used."""
    found, used = [], []
    for k in range(count):
        answer = served.predict(
            {"IMAGE": _planes(scenes, k), "DEPTH": np.array([[depth]], np.int32)}
        )
        found.append(panoptic_map(answer))
        used.append(int(answer["DEPTH_USED"][0][0]))
    return found, used


def _planes(scenes: Segmented, index: int) -> np.ndarray:
    return np.ascontiguousarray(scenes.pictures[index : index + 1].transpose(0, 3, 1, 2))
