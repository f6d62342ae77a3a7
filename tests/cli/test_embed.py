"""`vitrine embed`: how alike pictures are."""

from __future__ import annotations

import numpy as np
import pytest

from service.cli.embed import cosine


def test_cosines_are_those_between_rows() -> None:
    found = cosine(np.array([[3, 4], [4, 3], [-3, -4], [0, 0]], np.float32))
    np.testing.assert_allclose(
        found,
        [[1, 0.96, -1, 0], [0.96, 1, -0.96, 0], [-1, -0.96, 1, 0], [0, 0, 0, 0]],
        atol=1e-6,
    )
    assert found.max() <= 1


def test_length_does_not_matter() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert cosine(vectors) == pytest.approx(cosine(vectors * 7), abs=1e-6)
