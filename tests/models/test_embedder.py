"""What embeddings give and leave out, in either precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.registry import architecture
from models.serving import Device, InvalidInput, Predictor
from service.triton.cards import WeightsRecord

SLUGS = ("dvt", "sit", "tov-vicreg")


def _served(slug: str, device: Device | None = None) -> tuple[Predictor, np.ndarray]:
    """Return the demo network with random weights, and pictures of its size."""
    found = architecture(slug)
    card = found.card("demo", weights=WeightsRecord(kind="random"))
    torch.manual_seed(0)
    network = found.network(found.config("demo")).eval()
    served = found.serve(network, card, device or Device(), Path())
    assert isinstance(served, Predictor)
    assert card.image is not None
    size = (4, 3, card.image.height, card.image.width)
    return served, np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_map_comes_on_request_only(slug: str) -> None:
    served, pixels = _served(slug)
    plain = served.predict({"IMAGE": pixels})
    assert plain.keys() == {"EMBEDDING"}
    assert served.predict({"IMAGE": pixels, "DENSE": np.zeros((4, 1), np.int32)}).keys() == {
        "EMBEDDING"
    }
    dense = served.predict({"IMAGE": pixels, "DENSE": np.ones((4, 1), np.int32)})
    np.testing.assert_array_equal(dense["EMBEDDING"], plain["EMBEDDING"])
    assert dense["FEATURES"].ndim == 4
    assert {array.dtype for array in dense.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("slug", SLUGS)
def test_a_batch_equals_its_items(slug: str) -> None:
    served, pixels = _served(slug)
    pixels.flags.writeable = False
    together = served.predict({"IMAGE": pixels})["EMBEDDING"]
    assert np.ptp(together, axis=0).max() > 1e-3
    for i in range(4):
        alone = served.predict({"IMAGE": pixels[i : i + 1]})["EMBEDDING"]
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.parametrize("slug", SLUGS)
def test_bfloat16_points_the_same_way(slug: str) -> None:
    exact, pixels = _served(slug)
    rough, _ = _served(slug, Device("cpu", torch.bfloat16))
    dense = {"IMAGE": pixels, "DENSE": np.ones((4, 1), np.int32)}
    first, second = exact.predict(dense), rough.predict(dense)
    for name, array in first.items():
        other = second[name]
        assert other.dtype == np.float32
        length = np.linalg.norm(array, axis=-1) * np.linalg.norm(other, axis=-1)
        assert ((array * other).sum(-1) / length).min() > 0.99
        assert np.abs(array - other).max() > 0


@pytest.mark.parametrize("slug", SLUGS)
def test_other_sizes_are_refused(slug: str) -> None:
    served, _ = _served(slug)
    with pytest.raises(InvalidInput, match="this model takes"):
        served.predict({"IMAGE": np.zeros((1, 3, 60, 65), np.uint8)})
