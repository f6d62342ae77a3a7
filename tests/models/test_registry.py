"""What holds for every registered architecture, and for every model whose weights ship."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from models.papers import PAPERS
from models.registry import UnknownArchitecture, architecture, architectures, variant
from models.repository import config, shipped
from models.serving import Arrays, Device, Predictor
from models.shipped import SHIPPED
from models.signatures import ELEMENT_TYPES, SIGNATURES
from service.triton.cards import Card, WeightsRecord

VARIANTS = [(slug, name) for slug, made in architectures().items() for name in made.variants]
PREDICTORS = [id for id in SHIPPED if not SIGNATURES[shipped(id)[0].task].streamed]
NOT_OF_THE_52 = {"mask2former", "mtcnn", "rt-detr"}


def random_batch(card: Card, count: int) -> Arrays:
    """Return inputs of the card's task: noise, at the card's size or at an odd one where any will do."""
    stream = np.random.default_rng(5)
    image = card.image
    size = (image.height, image.width) if image and image.height and image.width else (90, 121)
    batch: Arrays = {}
    for spec in SIGNATURES[card.task].inputs:
        if not spec.optional:
            frames = [card.clip.frames] if card.clip and len(spec.dims) == 4 else []
            shape = (count, *frames, 3, *size)
            batch[spec.name] = stream.integers(0, 256, shape, dtype=np.uint8)
    return batch


@pytest.fixture(scope="module", params=PREDICTORS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Card, Predictor, Path]:
    card, parts = shipped(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    for name, source in parts.items():
        (folder / name).symlink_to(source)
    predictor = architecture(card.architecture).load(card, folder, Device())
    assert isinstance(predictor, Predictor)
    return card, predictor, folder


@pytest.mark.parametrize(("slug", "name"), VARIANTS, ids=[":".join(v) for v in VARIANTS])
def test_every_variant_has_a_card_and_a_configuration(slug: str, name: str) -> None:
    card = architecture(slug).card(name, weights=WeightsRecord(kind="official"))
    assert card.paper.slug in {row.slug for row in PAPERS} | NOT_OF_THE_52
    assert Card.model_validate_json(card.model_dump_json(exclude_defaults=True)) == card
    entry = config(card, "cpu")
    assert entry.name == card.id
    assert {i.name for i in entry.input} == {s.name for s in SIGNATURES[card.task].inputs}
    for metric in card.metrics:
        assert metric.origin == "published" or metric.note


@pytest.mark.parametrize("slug", architectures())
def test_exactly_one_variant_at_most_is_a_default(slug: str) -> None:
    assert sum(v.default for v in architecture(slug).variants.values()) <= 1


def test_unknown_names_are_explained() -> None:
    with pytest.raises(UnknownArchitecture, match=r"known: .*convnext"):
        architecture("convnxt")
    with pytest.raises(UnknownArchitecture, match=r"it has: .*tiny-1k-224"):
        variant("convnext:huge")
    assert variant("convnext")[1].demo is False


@pytest.mark.parametrize("id", SHIPPED)
def test_shipped_weights_are_small(id: str) -> None:
    card, parts = shipped(id)
    limit = 4_200_000 if SIGNATURES[card.task].streamed else 2_100_000
    assert sum(path.stat().st_size for path in parts.values()) <= limit
    assert re.fullmatch("[0-9a-f]{64}", card.weights.sha256 or "")
    with safe_open(parts["model.safetensors"], framework="pt") as file:
        elements = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    # Beside its parameters a file holds buffers: counters, statistics, tables.
    assert card.parameter_count is not None
    assert 0.9 * elements <= card.parameter_count <= elements


def test_outputs_are_those_of_the_task(served: tuple[Card, Predictor, Path]) -> None:
    card, predictor, _ = served
    outputs = predictor.predict(random_batch(card, 2))
    expected = {spec.name: spec for spec in SIGNATURES[card.task].outputs}
    # What nothing asks for may come, of models that have it.
    unasked = {name for name, spec in expected.items() if spec.asked_by is None}
    needed = {name for name, spec in expected.items() if not spec.optional}
    assert needed <= outputs.keys() <= unasked
    for name, items in outputs.items():
        assert len(items) == 2
        for array in items:
            assert array.dtype == ELEMENT_TYPES[expected[name].type]
            assert array.ndim == len(expected[name].dims)
            assert np.isfinite(array).all()


def test_equal_inputs_give_equal_outputs(served: tuple[Card, Predictor, Path]) -> None:
    card, predictor, _ = served
    first = predictor.predict(random_batch(card, 2))
    second = predictor.predict(random_batch(card, 2))
    for name, items in first.items():
        for array, again in zip(items, second[name], strict=True):
            np.testing.assert_array_equal(array, again)


def test_a_batch_equals_its_items(served: tuple[Card, Predictor, Path]) -> None:
    card, predictor, _ = served
    batch = random_batch(card, 3)
    together = predictor.predict(batch)
    for index in range(3):
        alone = predictor.predict({name: array[index : index + 1] for name, array in batch.items()})
        for name, items in alone.items():
            array, rows = items[0], len(items[0])
            if name == "MASK":  # Of noise; a pixel may lie on the edge of two decisions.
                assert (together[name][index] == array).mean() > 0.99
            elif name != "SEGMENTS":
                least = 1 if array.dtype == np.uint8 else 2e-4
                np.testing.assert_allclose(
                    together[name][index][:rows].astype(float), array.astype(float), atol=least
                )


def test_bfloat16_agrees(served: tuple[Card, Predictor, Path]) -> None:
    card, predictor, folder = served
    half = architecture(card.architecture).load(card, folder, Device(dtype=torch.bfloat16))
    assert isinstance(half, Predictor)
    batch = random_batch(card, 2)
    exact, rough = predictor.predict(batch), half.predict(batch)
    assert rough.keys() == exact.keys()
    if "IMAGE" in exact:
        assert np.abs(rough["IMAGE"].astype(float) - exact["IMAGE"]).mean() < 2
    elif "SCORES" in exact and exact["SCORES"].shape == rough["SCORES"].shape:
        np.testing.assert_allclose(rough["SCORES"], exact["SCORES"], atol=0.08)
