"""Training by the recipes, cut short: whole runs on real data, ending in weights that load and serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.deepfake.genconvit import GenConViT
from models.demo import clips, details, segmented, shapes
from models.demo.recipes import (
    UnknownRecipe,
    classification,
    genconvit,
    gms,
    kmax_deeplab,
    panoptic,
    recipe,
)
from models.demo.train import RECORD, train
from models.registry import architecture
from models.serving import Device, Predictor
from models.shipped import SHIPPED, WEIGHTS
from service.triton.cards import WeightsRecord


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain little from threads, and lose much where other tests hold the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def served(slug: str, folder: Path) -> Predictor:
    paper = architecture(slug)
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    predictor = paper.load(card, folder, Device("cpu"))
    assert isinstance(predictor, Predictor)
    return predictor


def test_a_short_training_of_convnext_writes_weights_and_record(tmp_path: Path) -> None:
    folder = tmp_path / "convnext-demo"
    scores = train("convnext-demo", folder, seed=3, steps=4)
    record = json.loads((folder / RECORD).read_text())
    assert record["model"] == "convnext-demo"
    assert (record["seed"], record["steps"]) == (3, 4)
    assert record["held_out"] == {name: round(score, 5) for name, score in scores.items()}
    state = load_file(folder / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    pixels = shapes.batch(0, 2)[0].transpose(0, 3, 1, 2)
    answer = served("convnext", folder).predict({"IMAGE": pixels})["SCORES"]
    assert answer.shape == (2, 36)
    np.testing.assert_allclose(answer.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("slug", ["duoformer", "mae-thorax"])
def test_networks_of_medicine_learn_from_drawings_of_their_own(slug: str, tmp_path: Path) -> None:
    folder = tmp_path / f"{slug}-demo"
    scores = train(folder.name, folder, steps=2)
    assert set(scores) == {"mean AUC", "mean AUC, degraded pictures"}
    pictures = classification.RECIPES[folder.name].pictures
    pixels = pictures.held_out(3).clean.transpose(0, 3, 1, 2)
    answer = served(slug, folder).predict({"IMAGE": np.ascontiguousarray(pixels)})["SCORES"]
    assert answer.shape == (3, 5)


@pytest.mark.parametrize(
    ("slug", "size", "names"),
    [
        ("gms", 64, {"Dice"}),
        ("mask2former", 96, {"mIoU", "PQ"}),
        ("kmax-deeplab", 96, {"mIoU", "PQ"}),
        ("eco-m2f", 96, {"mIoU", "PQ", "mean depth"}),
    ],
)
def test_segmenters_learn_from_scenes(
    slug: str, size: int, names: set[str], tmp_path: Path
) -> None:
    folder = tmp_path / f"{slug}-demo"
    scores = train(folder.name, folder, steps=2)
    assert scores.keys() == names
    assert 2 <= scores.pop("mean depth", 2) <= 6
    assert all(0 <= score <= 1 for score in scores.values())
    answer = served(slug, folder).predict({"IMAGE": np.zeros((1, 3, size, size), np.uint8)})
    assert answer["MASK"][0].shape == (size, size)


def test_a_detector_learns_from_scenes(tmp_path: Path) -> None:
    folder = tmp_path / "convnext-detection-demo"
    scores = train(folder.name, folder, steps=2)
    assert scores.keys() == {"AP50"}
    answer = served("convnext-detection", folder).predict(
        {"IMAGE": np.zeros((1, 3, 96, 128), np.uint8), "THRESHOLD": np.float32([[0]])}
    )
    assert answer["BOXES"].shape == (1, 100, 4)


def test_segments_go_to_the_queries_that_say_most_of_them() -> None:
    masks = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]], [[0.0] * 4]]])
    truth = kmax_deeplab.Truth(torch.tensor([[0, 1, -1]]), masks)
    # Query 0 shows the second segment, 2 the first; 1 shows the second as well, but of the wrong class.
    shown = 20 * torch.stack([masks[0, 1], masks[0, 1] - 0.01, masks[0, 0]])[None]
    classes = 20 * torch.nn.functional.one_hot(torch.tensor([[1, 0, 0]]), 3).float()
    assert kmax_deeplab.match(classes, shown, truth).tolist() == [[2, 0, -1]]


def test_scores_of_segmenters_by_hand() -> None:
    empty, left = torch.zeros(2, 4, dtype=torch.int32), torch.tensor([[1, 1, 0, 0]] * 2)
    assert gms.dice(torch.stack([empty, left]), torch.stack([empty, left])) == 1
    wide = torch.tensor([[1, 1, 1, 1]] * 2)
    assert gms.dice(torch.stack([empty, wide]), torch.stack([left, left])) == pytest.approx(1 / 3)
    scenes = segmented.drawn(0, 4)
    truth = np.stack([scenes.classes, scenes.numbers], -1)
    assert panoptic.scores(list(truth), scenes) == {"mIoU": 1, "PQ": 1}
    # One class for another: those two are worth nothing, the others all.
    mistaken = truth.copy()
    mistaken[..., 0][truth[..., 0] == 1] = 2
    assert panoptic.scores(list(mistaken), scenes)["mIoU"] < 1


def test_a_label_of_a_shape_is_worth_its_halves() -> None:
    truth = torch.tensor([shapes.label("star", "red")])
    wrong = {
        name: torch.eye(36)[[shapes.label(*name)]] * 20
        for name in (("star", "red"), ("star", "blue"), ("cross", "blue"))
    }
    losses = [classification.shape_loss(logits, truth).item() for logits in wrong.values()]
    # Right in both halves, in one, in none.
    assert losses[0] < losses[1] - 30 < losses[2] - 45


def test_the_area_under_the_curve_counts_pairs_in_order() -> None:
    scores = np.array([[0.9, 0.3], [0.2, 0.5], [0.4, 0.5], [0.1, 0.2]])
    truth = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    # First label: all four pairs. Second: 0.5 > 0.3, 0.5 = 0.5, 0.2 < 0.3, 0.2 < 0.5.
    assert classification.mean_auc(scores, truth) == pytest.approx((1 + 1.5 / 4) / 2)
    kinds = np.array([0, 1, 0, 1])
    one_hot = kinds[:, None] == np.arange(2)
    assert classification.mean_auc(scores, kinds) == classification.mean_auc(scores, one_hot)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        recipe("convnext-demo").train(
            tmp_path / name, "cpu", seed, lambda share, stage: None, steps=2
        )
    first, same, other = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "b", "c"))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["head.fc.weight"], other["head.fc.weight"])


def test_a_short_training_of_genconvit_writes_weights_that_serve(tmp_path: Path) -> None:
    folder = tmp_path / "genconvit-demo"
    scores = train("genconvit-demo", folder, seed=0, steps=1)
    assert set(scores) == {"AUC by clip", "accuracy by clip", "clips with a face"}
    faces = np.random.default_rng(0).integers(0, 256, (3, 3, 112, 112), np.uint8)
    answer = served("genconvit", folder).predict({"FACES": faces})
    assert answer["MEMBERS"].shape == (3, 2, 2)
    # Trained so that the two sigmoids of a network are one probability and its complement.
    np.testing.assert_allclose(answer["MEMBERS"].sum(-1), 1, atol=1e-3)


def test_a_failed_training_leaves_the_old_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "convnext-demo"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"old")

    def broken(*arguments: object) -> None:
        raise RuntimeError("the machine caught fire")

    monkeypatch.setattr(classification, "save_file", broken)
    with pytest.raises(RuntimeError, match="fire"):
        train("convnext-demo", folder, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["convnext-demo"]
    assert (folder / "model.safetensors").read_bytes() == b"old"


def test_unknown_models_are_refused_by_name() -> None:
    with pytest.raises(UnknownRecipe, match=r"convnext-demo, .*genconvit-demo"):
        recipe("alexnet-demo")


def test_the_detector_finds_the_drawn_faces() -> None:
    found = 0
    for seed in range(clips.HELD_OUT, clips.HELD_OUT + 12):
        for _, crops in genconvit.faces_of_pair(seed):
            found += len(crops) == genconvit.FACES_A_CLIP
    assert found >= 23


def test_balanced_logits_have_the_softmax_as_their_sigmoids() -> None:
    torch.manual_seed(0)
    last = torch.nn.Linear(8, 2)
    x = torch.randn(5, 8)
    expected = last(x).softmax(-1)
    genconvit.balance(last)
    torch.testing.assert_close(last(x).sigmoid(), expected)


def test_calibration_makes_both_kinds_of_error_equally_frequent() -> None:
    torch.manual_seed(0)
    paper = architecture("genconvit")
    network = paper.network(paper.config("demo")).eval()
    assert isinstance(network, GenConViT)
    faces = np.random.default_rng(0).integers(0, 256, (2, 24, 3, 112, 112), np.uint8)
    faces[1, :16] //= 2
    drawn = [(bool(kind), [face]) for kind in (0, 1) for face in faces[kind]]
    genconvit.calibrate(network, drawn, Device("cpu"))
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    predictor = paper.serve(network, card, Device("cpu"), WEIGHTS)
    assert isinstance(predictor, Predictor)
    real, fake = (predictor.predict({"FACES": kind})["MEMBERS"][:, :, 1] for kind in faces)
    wrong = (real >= 0.5).mean(0) - (fake < 0.5).mean(0)
    assert np.abs(wrong).max() <= 1 / 24


def test_a_short_training_of_drct_writes_weights_that_make_pictures_larger(tmp_path: Path) -> None:
    folder = tmp_path / "drct-demo"
    scores = train("drct-demo", folder, steps=1)
    assert set(scores) == {"PSNR", "PSNR above bicubic"}
    small = details.small(details.draw(0), 2)
    answer = served("drct", folder).predict({"IMAGE": small.transpose(2, 0, 1)[None]})
    assert answer["IMAGE"].shape == (1, 3, 96, 96)


@pytest.mark.parametrize(
    "model_id",
    sorted(
        (
            classification.RECIPES.keys()
            | {"convnext-detection-demo", "drct-demo", "eco-m2f-demo", "genconvit-demo", "gms-demo"}
            | {"kmax-deeplab-demo", "mask2former-demo"}
        )
        & SHIPPED.keys()
    ),
)
def test_shipped_weights_are_small_and_come_with_their_record(model_id: str) -> None:
    folder = WEIGHTS / model_id
    record = json.loads((folder / RECORD).read_text())
    assert record["model"] == model_id
    assert record["steps"] == recipe(model_id).STEPS, "shipped weights come from a whole training"
    assert (folder / "model.safetensors").stat().st_size < 1.2e6
    assert load_file(folder / "model.safetensors").keys()


def test_shipped_convnext_names_held_out_shapes() -> None:
    scores = classification.RECIPES["convnext-demo"].measure(WEIGHTS / "convnext-demo", count=300)
    assert scores["top-1"] >= 0.97
    assert scores["top-1, degraded pictures"] >= 0.93


def test_shipped_genconvit_tells_held_out_clips_apart() -> None:
    seeds = range(clips.HELD_OUT + 1000, clips.HELD_OUT + 1006)
    scores = genconvit.measure(
        WEIGHTS / "genconvit-demo", seeds, Device("cpu"), lambda share, stage: None
    )
    assert scores["AUC by clip"] >= 0.95
    assert scores["accuracy by clip"] >= 0.8
