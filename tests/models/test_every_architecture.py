"""What holds for the network of every architecture, with random weights, trained or not.

The pattern is timm's `tests/test_models.py`. Quick: the demo variant of each architecture really computes. Published
variants are built and run on the meta device, which gives the shapes: the first of each network, and with `-m full` all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.architecture import Architecture
from models.entries import read_card
from models.registry import architecture, architectures
from models.repository import write_entry
from models.serving import Arrays, Device, InvalidInput, Predictor
from models.signatures import ELEMENT_TYPES, SIGNATURES
from models.weights.conversion import convert
from models.weights.fit import fit
from service.triton.cards import Card, Task, WeightsRecord
from tests.models.test_registry import random_batch

# Generators stream, and detectors find what they find: both have tests of their own.
FEED_FORWARD = [
    slug
    for slug, made in architectures().items()
    if not SIGNATURES[made.task].streamed and made.task not in (Task.DETECTION, Task.FACE_DETECTION)
]
WITH_DEMO = [slug for slug in FEED_FORWARD if "demo" in architecture(slug).variants]
# One variant of each network: others have other weights, pictures or frames. GenConViT has its golden files for that.
PUBLISHED = list(
    {
        (slug, repr(sorted(variant.config.items()))): (slug, variant.name)
        for slug in FEED_FORWARD
        for variant in architecture(slug).variants.values()
        if not variant.demo and slug != "genconvit"
    }.values()
)
FIRST = list({slug: (slug, name) for slug, name in reversed(PUBLISHED)}.values())
# Outputs that say how, not what; and what may be the same of two pictures where weights are random.
OF_NO_PICTURE = {"HIDDEN", "METHOD", "MASK", "SEGMENTS"}
# Of probabilities, and of vectors by the cosine.
BFLOAT16_SCORES, BFLOAT16_COSINE = 0.08, 0.99
# Of 8-bit pixels, on average.
BFLOAT16_LEVELS = 3
# Share of a mask's pixels: some lie on the edge of two decisions.
SAME_PIXELS = 0.99


@dataclass(frozen=True)
class Served:
    """A demo variant with random weights, loaded as an entry of the repository is."""

    made: Architecture
    card: Card
    folder: Path
    predictor: Predictor


def state_of(made: Architecture, variant: str) -> dict[str, torch.Tensor]:
    """Return random weights under the network's names, in which no part is switched off.

    Many networks start with gains of zero or next to it, which would hide what lies behind them.
    """
    torch.manual_seed(0)
    network = made.network(made.config(variant))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    # Names of one and the same tensor would be refused by safetensors.
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module", params=WITH_DEMO)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    made = architecture(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    save_file(state_of(made, "demo"), folder / "model.safetensors")
    card = made.card("demo", weights=WeightsRecord(kind="random"))
    predictor = made.load(card, folder, Device())
    assert isinstance(predictor, Predictor)
    return Served(made, card, folder, predictor)


def optional_inputs(card: Card, count: int) -> Arrays:
    """Return what asks for every optional output: the evidence for class 0, the map of features, a mask of another size."""
    values = {
        "CLASS": np.int32(0),
        "DENSE": np.int32(1),
        "SHARE": np.float32(0.5),
        "SEED": np.int64(3),
        "SIZE": np.int32(50),
        "DEPTH": np.int32(0),
        "PROBABILITY": np.int32(1),
        "UNROUNDED": np.int32(1),
    }
    return {
        spec.name: np.full((count, *spec.dims), values[spec.name], values[spec.name].dtype)
        for spec in SIGNATURES[card.task].inputs
        if spec.optional and spec.name in values
    }


def modules_of(predictor: Predictor) -> list[nn.Module]:
    return [part for part in vars(predictor).values() if isinstance(part, nn.Module)]


def test_outputs_have_the_shapes_and_types_of_the_task(served: Served) -> None:
    specs = SIGNATURES[served.card.task].outputs
    batch = random_batch(served.card, 2)
    plain = served.predictor.predict(batch)
    assert plain.keys() == {spec.name for spec in specs if not spec.optional}
    whole = served.predictor.predict(batch | optional_inputs(served.card, 2))
    assert plain.keys() <= whole.keys()
    for spec in specs:
        if spec.name not in whole:
            continue
        assert len(whole[spec.name]) == 2
        for array in whole[spec.name]:
            assert array.ndim == len(spec.dims)
            assert all(
                size == dim for size, dim in zip(array.shape, spec.dims, strict=True) if dim >= 0
            )
            assert array.dtype == ELEMENT_TYPES[spec.type]
            if array.dtype == np.float32:
                assert np.isfinite(array).all()
    if served.card.labels and "SCORES" in plain:
        assert plain["SCORES"].shape == (2, len(served.card.labels))
    if "SCORES" in plain and served.card.activation == "softmax" and "MEMBERS" not in plain:
        np.testing.assert_allclose(plain["SCORES"].sum(-1), 1, atol=1e-4)


def test_answers_depend_on_the_picture_and_on_nothing_else(served: Served) -> None:
    batch = random_batch(served.card, 2)
    first, second = served.predictor.predict(batch), served.predictor.predict(batch)
    for name, array in first.items():
        for item, again in zip(array, second[name], strict=True):
            np.testing.assert_array_equal(item, again)
        if name not in OF_NO_PICTURE:
            assert (array[0] != array[1]).any(), f"{name} of two pictures is the same"


def test_a_batch_equals_its_items(served: Served) -> None:
    batch = random_batch(served.card, 3)
    together = served.predictor.predict(batch)
    for index in range(3):
        alone = served.predictor.predict({k: v[index : index + 1] for k, v in batch.items()})
        for name, array in alone.items():
            if name == "MASK":
                assert (together[name][index] == array[0]).mean() >= SAME_PIXELS
                continue
            if name == "SEGMENTS":
                continue
            if array.dtype == object:
                assert together[name][index] == array[0]
                continue
            least = 1 if array.dtype == np.uint8 else 2e-4 * max(1.0, float(np.abs(array).max()))
            np.testing.assert_allclose(
                together[name][index].astype(np.float64), array[0].astype(np.float64), atol=least
            )


def test_bfloat16_stays_close(served: Served) -> None:
    half = served.made.load(served.card, served.folder, Device(dtype=torch.bfloat16))
    assert isinstance(half, Predictor)
    batch = random_batch(served.card, 2)
    exact, rough = served.predictor.predict(batch), half.predict(batch)
    for name, array in exact.items():
        assert rough[name][0].dtype == array[0].dtype
        if name in ("MASK", "SEGMENTS"):
            continue  # Random weights decide by a hair.
        if name == "EMBEDDING":
            lengths = np.linalg.norm(array, axis=1) * np.linalg.norm(rough[name], axis=1)
            assert ((array * rough[name]).sum(1) / lengths).min() > BFLOAT16_COSINE
        elif array.dtype == np.uint8:
            far = np.abs(rough[name].astype(np.float64) - array)
            assert far.mean() < BFLOAT16_LEVELS
        elif array.dtype == np.float32:
            np.testing.assert_allclose(rough[name], array, atol=BFLOAT16_SCORES)


def test_serving_computes_no_gradients(served: Served) -> None:
    networks = modules_of(served.predictor)
    assert networks
    served.predictor.predict(random_batch(served.card, 1) | optional_inputs(served.card, 1))
    for network in networks:
        assert not network.training
        assert all(parameter.grad is None for parameter in network.parameters())


def test_another_size_is_refused_by_its_name(served: Served) -> None:
    batch = random_batch(served.card, 1)
    (name,) = [n for n, array in batch.items() if array.dtype == np.uint8]
    image = served.card.image
    assert image is not None
    if not image.is_fixed:
        assert served.predictor.predict({name: batch[name][..., :-8, :-16]})
        return
    smaller = batch[name][..., :-8, :-16]
    with pytest.raises(InvalidInput, match=rf"takes \[\d, {image.height}, {image.width}\]"):
        served.predictor.predict(batch | {name: smaller})


def test_weights_come_back_whole_and_nothing_may_lack(served: Served, tmp_path: Path) -> None:
    """The file in the network's own names, inside a training script's wrapper, is what is written."""
    state = load_file(served.folder / "model.safetensors")
    written = tmp_path / "model.safetensors"
    converted = convert([{"state_dict": state, "epoch": 3}], served.made, "demo", written)
    assert converted.variant == "demo"
    assert not converted.warnings
    again = load_file(written)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)

    lost = next(name for name, tensor in state.items() if tensor.ndim > 1)
    save_file({name: t for name, t in state.items() if name != lost}, written)
    with pytest.raises(RuntimeError, match=lost.replace(".", r"\.")):
        served.made.load(served.card, tmp_path, Device())
    fitted = fit(served.made, "demo", [{n: t for n, t in state.items() if n != lost}])
    assert fitted.missing == (lost,)


def test_the_entry_of_the_repository_holds_card_and_weights(served: Served, tmp_path: Path) -> None:
    weights = served.folder / "model.safetensors"
    entry = write_entry(tmp_path, served.card, {"model.safetensors": weights}, "cpu")
    assert read_card(entry / "config.pbtxt") == served.card
    assert (entry / "1" / "model.safetensors").samefile(weights)
    assert "models.backend" in (entry / "1" / "model.py").read_text()


@pytest.fixture
def shapes_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Let everything be built on the meta device, which knows no autocast."""

    class NoAutocast(contextlib.nullcontext[None]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__()

    monkeypatch.setattr(torch, "autocast", NoAutocast)
    with torch.device("meta") as device, torch.inference_mode():
        yield device


@pytest.mark.parametrize(
    ("slug", "name"),
    [
        # The first published variant of each network always, the others in the full run.
        pytest.param(*pair, id=":".join(pair), marks=[] if pair in FIRST else [pytest.mark.full])
        for pair in PUBLISHED
    ],
)
def test_every_published_variant_answers_for_pictures_of_its_size(
    slug: str, name: str, shapes_only: torch.device
) -> None:
    made = architecture(slug)
    card = made.card(name, weights=WeightsRecord(kind="official"))
    network = made.network(made.config(name)).eval()
    assert card.image is not None
    height, width = card.image.height or 96, card.image.width or 96
    size = (2, 3, height, width)
    if card.task is Task.VIDEO_CLASSIFICATION:
        assert card.clip is not None
        size = (2, 3, card.clip.frames, height, width)
    image = torch.empty(size)
    if card.task is Task.SEGMENTATION:
        return  # What they attend to depends on values, which there are none of here.
    if card.task is Task.EMBEDDING:
        vector, features = network.represent(image)
        assert vector.ndim == 2
        assert features.ndim == 4
        assert len(vector) == len(features) == 2
        return
    if card.task is Task.SUPER_RESOLUTION:
        assert card.scale is not None
        assert network(image).shape == (2, 3, card.scale * height, card.scale * width)
        return
    if card.task is Task.RECONSTRUCTION:
        hidden = torch.zeros(2, height, width, dtype=torch.bool)
        if slug == "sit-reconstruction":  # The other one counts what is hidden.
            assert network.restore(image, hidden).shape == image.shape
        return
    answer = network(image)
    logits = answer[0] if isinstance(answer, tuple) else answer
    assert logits.shape == (2, made.config(name)["num_classes"])
    assert len(card.labels) in (0, logits.shape[1])
