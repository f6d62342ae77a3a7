"""Average Drop and Increase in Confidence, by hand on a network that only looks at brightness."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.faithfulness import Faithfulness, faithfulness, load, masked
from models.serving import Arrays, Predictor


class Brightness(Predictor):
    """Class 0 by the brightness of the left half, class 1 by what is missing to 1."""

    def __init__(self, heatmap: list[list[float]]) -> None:
        self.heatmap = np.array(heatmap, np.float32)

    def predict(self, batch: Arrays) -> Arrays:
        left = batch["IMAGE"][..., :2].mean((1, 2, 3)) / 200
        answer = {"SCORES": np.stack([left, 1 - left], 1).astype(np.float32)}
        if "CLASS" in batch:
            answer["HEATMAP"] = np.repeat(self.heatmap[None], len(left), 0)
        return answer


def _picture(left: int) -> np.ndarray:
    pixels = np.full((3, 4, 4), 80, np.uint8)
    pixels[..., :2] = left
    return pixels


# As large as the pictures, so that nothing is interpolated: the left half, the right half.
LEFT, RIGHT = [[1, 1, 0, 0]] * 4, [[0, 0, 1, 1]] * 4


def test_a_true_map_costs_nothing() -> None:
    (found,) = faithfulness(Brightness(LEFT), [_picture(160), _picture(140)], kept=(1.0,))
    assert found == Faithfulness(1.0, 0.0, 0.0)


def test_a_wrong_map_costs_everything() -> None:
    (found,) = faithfulness(Brightness(RIGHT), [_picture(160)], kept=(1.0,))
    assert found == Faithfulness(1.0, 100.0, 0.0)


def test_drops_are_shares_and_rises_are_counted() -> None:
    # The first falls from 0.8 to 0.4, by half; the second, of the dark class, rises from 0.7 to 1.
    half = [[0.5, 0.5, 0, 0]] * 4
    (found,) = faithfulness(Brightness(half), [_picture(160), _picture(60)], kept=(1.0,))
    assert found.average_drop == pytest.approx(25.0, abs=1e-4)
    assert found.increase_in_confidence == 50.0


def test_of_a_share_of_the_map_the_strongest_stays() -> None:
    pixels = np.full((1, 3, 2, 4), 100, np.uint8)
    maps = np.array([[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]], np.float32)
    np.testing.assert_array_equal(masked(pixels, maps, 0.5)[0, 0], [[0, 0, 0, 0], [50, 60, 70, 80]])
    np.testing.assert_array_equal(masked(pixels, maps, 0.15)[0], [[[0] * 4, [0, 0, 70, 80]]] * 3)


def test_maps_are_resized_bilinearly() -> None:
    pixels = np.full((1, 3, 1, 4), 100, np.uint8)
    maps = np.array([[[0.0, 1.0]]], np.float32)
    assert masked(pixels, maps, 1.0)[0, 0].tolist() == [[0, 25, 75, 100]]


def test_what_cannot_be_measured() -> None:
    class Silent(Brightness):
        def predict(self, batch: Arrays) -> Arrays:
            return {"SCORES": super().predict(batch)["SCORES"]}

    with pytest.raises(ValueError, match="no maps"):
        faithfulness(Silent(LEFT), [_picture(1)])
    with pytest.raises(ValueError, match="no pictures"):
        faithfulness(Brightness(LEFT), [])


def test_the_command(tmp_path: Path) -> None:
    import typer

    from models.faithfulness import command

    app = typer.Typer()
    app.command()(command)
    run = CliRunner()
    arguments = ["convnext-demo", "--count", "6", "--repository", str(tmp_path), "--json"]
    answer = run.invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert [each["kept"] for each in found] == [1.0, 0.5, 0.15]
    assert all(0 <= each["average_drop"] <= 100 for each in found)
    assert run.invoke(app, ["nothing", "--repository", str(tmp_path)]).exit_code == 1
    assert run.invoke(app, ["micro-dit-demo", "--repository", str(tmp_path)]).exit_code == 1


def test_shipped_models_are_loaded(tmp_path: Path) -> None:
    card, predictor = load("convnext-demo", tmp_path)
    assert card.id == "convnext-demo"
    assert isinstance(predictor, Predictor)
