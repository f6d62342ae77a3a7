"""Clips of moving shapes: their labels are what an eye would say, and a short training on them serves."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from models.demo import motions
from models.demo.recipes import recipe
from models.demo.train import train
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

SEEDS = range(motions.HELD_OUT, motions.HELD_OUT + 60)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seen(pixels: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the share of a frame that its colourful pixels take, and their centre, x and y in 0..1."""
    colour = pixels.astype(np.float64).max(-1) - pixels.min(-1) > 70
    if not colour.any():
        return 0.0, (math.nan, math.nan)
    rows, columns = np.nonzero(colour)
    return float(colour.mean()), (columns.mean() / colour.shape[1], rows.mean() / colour.shape[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clip_shows_what_its_label_says(seed: int) -> None:
    clip, label = motions.clip(seed, 12, 96)
    assert clip.shape == (12, 96, 96, 3)
    areas, centres = zip(*(seen(frame) for frame in clip), strict=True)
    name = motions.LABELS[label]
    if name == "blinks":
        hidden = sum(area < 0.01 for area in areas)
        assert 2 <= hidden <= 9
        return
    assert min(areas) > 0.01
    dx, dy = centres[-1][0] - centres[0][0], centres[-1][1] - centres[0][1]
    far = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
    if name in far:
        x, y = far[name]
        assert dx * x + dy * y > 0.25
    else:
        assert math.hypot(dx, dy) < 0.1
    growth = areas[-1] / areas[0]
    assert (growth > 2) == (name == "grows")
    assert (growth < 0.5) == (name == "shrinks")


@pytest.mark.parametrize("seed", SEEDS)
def test_turns_are_clockwise_to_the_eye(seed: int) -> None:
    made = motions.motion(seed)
    name = motions.LABELS[made.label]
    if not name.startswith("turns"):
        assert abs(made.turn) < 0.1
        return
    before, after = (motions._outline(made, "triangle", passed) for passed in (0.0, 0.1))
    arm = before[0] - before.mean(0)
    moved = (after[0] - after.mean(0)) - arm
    # With y down, the cross product of an arm and its way is positive for a clockwise turn.
    clockwise = arm[0] * moved[1] - arm[1] * moved[0] > 0
    assert clockwise == (name == "turns clockwise")


def test_labels_come_in_turn_and_seeds_give_the_same_clip() -> None:
    assert [motions.motion(seed).label for seed in range(40, 50)] == list(range(10))
    assert np.array_equal(motions.clip(7)[0], motions.clip(7)[0])
    assert not np.array_equal(motions.clip(7)[0], motions.clip(17)[0])
    with pytest.raises(ValueError, match="2 frames"):
        motions.clip(7, 1)


def test_mirrors_swap_directions() -> None:
    names = [motions.LABELS[motions.mirrored(label)] for label in range(len(motions.LABELS))]
    assert names[:2] == ["moves right", "moves left"]
    assert names[4:6] == ["turns counter-clockwise", "turns clockwise"]
    assert names[2:4] + names[6:] == list(motions.LABELS[2:4] + motions.LABELS[6:])


def test_a_clip_as_a_file() -> None:
    data = motions.clip_bytes(motions.HELD_OUT + 1, seconds=1.0, fps=12, size=64)
    with av.open(io.BytesIO(data)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    drawn = motions.clip(motions.HELD_OUT + 1, 12, 64)[0]
    assert len(shown) == 12
    assert np.abs(np.stack(shown).astype(float) - drawn).mean() < 8
    with pytest.raises(ValueError, match="even"):
        motions.clip_bytes(0, size=65)


@pytest.mark.parametrize("id", ["uniformer-video-demo", "uniformerv2-demo"])
def test_a_short_training_writes_weights_that_serve(id: str, tmp_path: Path) -> None:
    folder = tmp_path / id
    scores = train(id, folder, seed=1, steps=2)
    assert set(scores) == {"top-1", "top-1, degraded clips"}
    assert (folder / "model.safetensors").stat().st_size < 1_100_000
    paper = architecture(recipe(id).slug)  # type: ignore[attr-defined]
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device())
    assert isinstance(served, Predictor)
    clips = np.stack([motions.clip(seed)[0] for seed in (0, 1)]).transpose(0, 1, 4, 2, 3)
    answer = served.predict({"FRAMES": np.ascontiguousarray(clips)})["SCORES"]
    assert answer.shape == (2, len(motions.LABELS))
    np.testing.assert_allclose(answer.sum(1), 1, rtol=1e-4)
