"""Trainings of embeddings, restorers and explanations, cut short, and what is shipped of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.demo import motions, shapes
from models.demo.pictures import RADIOGRAPHS
from models.demo.recipes import RECIPES, mae_thorax, recipe, sit, tov_vicreg
from models.demo.recipes.restoration import FILLED, PSNR, measure_restoration
from models.demo.train import RECORD, train
from models.registry import architecture
from models.shipped import SHIPPED, WEIGHTS

IDS = sorted(
    id
    for id, module in RECIPES.items()
    if module in ("dvt", "mae_thorax", "sit", "t_tame", "tov_vicreg")
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "id", [IDS[0], *(pytest.param(id, marks=pytest.mark.full) for id in IDS[1:])]
)
def test_a_short_training_writes_weights_that_fit_and_what_they_are_worth(
    id: str, tmp_path: Path
) -> None:
    folder = tmp_path / id
    scores = train(id, folder, seed=1, steps=2)
    assert np.isfinite(list(scores.values())).all()
    paper = architecture(id.removesuffix("-demo"))
    state = load_file(folder / "model.safetensors")
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    assert sum(value.nbytes for value in state.values()) <= 2**20
    with torch.device("meta"):
        network = paper.network(paper.config("demo"))
    assert state.keys() == network.state_dict().keys()


def test_labels_by_examples_are_counted_without_the_examples() -> None:
    labels = np.repeat([3, 8], 4)
    vectors = np.array([[1, 0], [0, 1]], np.float32).repeat(4, axis=0)
    assert sit.few_shot(vectors, labels, examples=2) == 1
    # The last of the one kind looks like the other; an example that does so would move its prototype.
    vectors[3] = (0, 1)
    assert sit.few_shot(vectors, labels, examples=2) == 0.75


def test_what_is_held_back_of_the_labels_has_each_colour_and_shape_once() -> None:
    names = [shapes.LABELS[label].split() for label in sit.UNSEEN]
    assert {colour for colour, _ in names} == set(shapes.COLOURS)
    assert {shape for _, shape in names} == set(shapes.SHAPES)


def test_a_probe_finds_what_is_linear_in_the_vectors() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 8)) * 100 + 5
    labels = (vectors[:, :2] > 5).astype(np.float32)
    scores = mae_thorax.probe(vectors[:200], labels[:200], vectors[200:])
    assert ((scores > 0.5) == labels[200:]).mean() > 0.9


def test_clips_whose_order_is_asked_for_have_one() -> None:
    kinds = {motions.LABELS[motions.motion(k).label] for k in tov_vicreg.ordered_seeds(5, 40)}
    assert kinds == {f"moves {way}" for way in ("left", "right", "up", "down")} | {
        "grows",
        "shrinks",
    }
    before, now, after = tov_vicreg.observations(0).astype(float)
    # Neighbours of a motion are more alike than its ends.
    assert np.abs(now - before).mean() < np.abs(after - before).mean()


@pytest.mark.parametrize("id", sorted(set(IDS) & SHIPPED.keys()))
def test_shipped_weights_come_from_a_whole_training(id: str) -> None:
    record = json.loads((WEIGHTS / id / RECORD).read_text())
    assert (record["model"], record["steps"]) == (id, recipe(id).STEPS)


def test_shipped_restorer_of_x_rays_predicts_what_is_hidden() -> None:
    scores = measure_restoration(
        mae_thorax.RESTORER, WEIGHTS / f"{mae_thorax.RESTORER}-demo", RADIOGRAPHS, "cpu", 50
    )
    assert scores[PSNR] >= scores[FILLED] + 5
