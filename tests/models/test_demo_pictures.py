"""Drawn X-rays and tissue, the sets made of drawn pictures, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.demo import details, radiographs, tissue
from models.demo.drawn import kept
from models.demo.pictures import RADIOGRAPHS, SHAPES, TISSUE, PictureSet

Draw = Callable[[int, int], tuple[np.ndarray, int | np.ndarray]]


def _with(finding: str, wanted: bool, count: int = 60) -> np.ndarray:
    """Return X-rays [count, 64, 64], 0..255, that show `finding`, or show nothing at all."""
    index, found = radiographs.FINDINGS.index(finding), []
    seed = 0
    while len(found) < count:
        pixels, has = radiographs.draw(seed)
        if bool(has[index]) == wanted and has.sum() == wanted:
            found.append(pixels[..., 0].astype(float))
        seed += 1
    return np.stack(found)


@pytest.mark.parametrize("draw", [radiographs.draw, tissue.draw])
def test_a_picture_is_a_function_of_its_seed(draw: Draw) -> None:
    pixels, label = draw(7, 48)
    again, same = draw(7, 48)
    assert pixels.shape == (48, 48, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, again)
    np.testing.assert_array_equal(label, same)
    assert not np.array_equal(pixels, draw(8, 48)[0])
    with pytest.raises(ValueError, match="smallest is 16"):
        draw(0, 15)


def test_details_are_a_function_of_their_seed_and_small_ones_have_fewer_pixels() -> None:
    picture = details.draw(3, 64)
    np.testing.assert_array_equal(picture, details.draw(3, 64))
    assert not np.array_equal(picture, details.draw(4, 64))
    reduced = details.small(picture, 2)
    assert reduced.shape == (32, 32, 3)
    assert np.abs(reduced.mean((0, 1)) - picture.mean((0, 1))).max() < 1


@pytest.mark.parametrize("draw", [radiographs.draw, tissue.draw])
@pytest.mark.parametrize("seed", range(5))
def test_another_size_is_the_same_picture_scaled(draw: Draw, seed: int) -> None:
    small, label = draw(seed, 64)
    large, same = draw(seed, 128)
    np.testing.assert_array_equal(label, same)
    reduced = np.asarray(Image.fromarray(large).reduce(2), dtype=float)
    # Both have grain of their own.
    blurred = [
        np.asarray(Image.fromarray(p.astype(np.uint8)).reduce(4), float) for p in (small, reduced)
    ]
    assert np.abs(blurred[0] - blurred[1]).mean() < 6


def test_findings_are_independent_and_as_frequent_as_each_other() -> None:
    labels = np.stack([radiographs.draw(seed, 16)[1] for seed in range(2000)])
    np.testing.assert_allclose(labels.mean(0), 0.35, atol=0.04)
    assert np.abs(np.corrcoef(labels.T) - np.eye(5)).max() < 0.08


def test_findings_change_what_their_names_say() -> None:
    healthy = _with("Mass", False)
    # The heart takes more of the row that it lies in; fluid and a mass are bright, escaped air is dark.
    row = slice(36, 42)
    assert _with("Cardiomegaly", True)[:, row].mean() > healthy[:, row].mean() + 5
    low = slice(34, 42)
    assert _with("Effusion", True)[:, low].mean() > healthy[:, low].mean() + 3
    assert np.median(_with("Mass", True)[:, :40].max((1, 2))) > np.median(
        healthy[:, :40].max((1, 2))
    )
    darkest = np.median(np.percentile(healthy, 2, axis=(1, 2)))
    assert np.median(np.percentile(_with("Pneumothorax", True), 2, axis=(1, 2))) < darkest
    lungs = (slice(None), slice(14, 34), slice(14, 50))
    assert _with("Consolidation", True)[lungs].mean() > healthy[lungs].mean() + 3


def test_every_kind_of_tissue_is_drawn_as_often() -> None:
    kinds = [tissue.draw(seed, 16)[1] for seed in range(1000)]
    shares = np.bincount(kinds, minlength=len(tissue.KINDS)) / 1000
    np.testing.assert_allclose(shares, 0.2, atol=0.05)


def test_inflamed_tissue_is_darker_than_dead_tissue() -> None:
    grey: dict[int, list[float]] = {k: [] for k in range(len(tissue.KINDS))}
    for seed in range(200):
        pixels, kind = tissue.draw(seed)
        grey[kind].append(float(pixels.mean()))
    means = {tissue.KINDS[k]: np.mean(values) for k, values in grey.items()}
    assert means["necrosis"] > means["inflammation"] + 5
    assert means["necrosis"] > means["tumour"] + 10


@pytest.mark.parametrize("made", [SHAPES, RADIOGRAPHS, TISSUE])
def test_every_second_training_picture_is_degraded(made: PictureSet) -> None:
    pixels, labels = made.training(2, 6)
    assert pixels.shape == (6, 64, 64, 3)
    for k in range(6):
        drawn, label = made.draw(2 * made.count + k, 64)
        np.testing.assert_array_equal(labels[k], label)
        assert np.array_equal(pixels[k], drawn) or k % 2


@pytest.mark.parametrize("made", [SHAPES, RADIOGRAPHS, TISSUE])
def test_no_training_picture_is_held_out(made: PictureSet) -> None:
    held_out = made.held_out(3)
    np.testing.assert_array_equal(held_out.clean[2], made.draw(made.held_out_from + 2, 64)[0])
    assert held_out.degraded.shape == held_out.clean.shape == (3, 64, 64, 3)
    assert len(held_out.truth) == 3


def test_what_was_drawn_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def draw() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"pixels": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": np.array([1, 2])}

    first, second = kept("a", (tissue,), draw), kept("a", (tissue,), draw)
    assert len(calls) == 1
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert array.dtype == second[name].dtype
    kept("b", (tissue,), draw)
    kept("a", (radiographs,), draw)
    assert len(calls) == 3
    assert not list(tmp_path.rglob("*.part"))
