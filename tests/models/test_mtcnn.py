"""MTCNN: against what the facenet-pytorch package found, and on what a service meets.

`mtcnn_reference.json` was recorded with facenet-pytorch 2.6.0: its `detect_face` on the pictures named
there, thresholds 0.6, 0.7, 0.7, factor 0.709; boxes sorted by score, pixels of the picture.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from skimage import data

from models.deepfake.face_detector import FaceDetector, nms
from models.deepfake.mtcnn import MTCNN
from models.layers.graph import Cascade
from models.registry import architecture
from models.runtimes.choice import accelerate
from models.runtimes.openvino import exported, load
from models.serving import Device, Predictor
from models.shipped import WEIGHTS
from models.weights.errors import NoRuntime
from service.triton.cards import Card, WeightsRecord

ARCHITECTURE = architecture("mtcnn")
REFERENCE = json.loads((Path(__file__).parent / "mtcnn_reference.json").read_text())


def _pictures() -> dict[str, np.ndarray]:
    astronaut = data.astronaut()
    return {
        "astronaut": astronaut,
        "astronaut, mirrored": astronaut[:, ::-1],
        "astronaut, upper left 300x360 from column 60": astronaut[:300, 60:420],
        "astronaut, twice side by side": np.tile(astronaut, (1, 2, 1)),
        "astronaut, every second pixel": astronaut[::2, ::2],
        "coffee": data.coffee(),
        "chelsea": data.chelsea(),
    }


PICTURES = _pictures()


def _planes(*pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def network() -> MTCNN:
    network = MTCNN()
    network.load_state_dict(load_file(WEIGHTS / "mtcnn.safetensors"))
    return network.eval()


@pytest.fixture(scope="module")
def eager(network: MTCNN) -> Predictor:
    card = ARCHITECTURE.card("default", weights=WeightsRecord(kind="official"))
    assert card.id == "mtcnn"
    served = ARCHITECTURE.serve(network, card, Device(), WEIGHTS)
    assert isinstance(served, Cascade)
    return served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The entry's version as it is written for a CPU, and its card."""
    folder = tmp_path_factory.mktemp("mtcnn")
    (folder / "model.safetensors").write_bytes((WEIGHTS / "mtcnn.safetensors").read_bytes())
    card = ARCHITECTURE.card("default", weights=WeightsRecord(kind="official"))
    (folder / "card.json").write_text(accelerate(card, folder).model_dump_json())
    return folder


@pytest.fixture(scope="module")
def in_openvino(folder: Path) -> Predictor:
    return load(Card.model_validate_json((folder / "card.json").read_text()), folder)


@pytest.fixture(params=["eager", "in_openvino"])
def detector(request: pytest.FixtureRequest) -> Predictor:
    found: Predictor = request.getfixturevalue(request.param)
    return found


def _cascade(detector: Predictor) -> FaceDetector:
    cascade = detector.predictor if isinstance(detector, Cascade) else detector
    assert isinstance(cascade, FaceDetector)
    return cascade


@pytest.mark.parametrize("expected", REFERENCE, ids=lambda e: e["picture"])
def test_finds_what_the_package_finds(detector: Predictor, expected: dict[str, Any]) -> None:
    pixels = _planes(PICTURES[expected["picture"]])
    (faces,) = _cascade(detector).detect(pixels, expected["min_face_size"])
    assert len(faces.scores) == len(expected["scores"])
    np.testing.assert_allclose(faces.scores, expected["scores"], atol=1e-4)
    shape = (-1, 4)
    np.testing.assert_allclose(faces.boxes, np.reshape(expected["boxes"], shape), atol=0.02)
    np.testing.assert_allclose(
        faces.landmarks, np.reshape(expected["landmarks"], (-1, 5, 2)), atol=0.02
    )


def test_recorded_pictures_hold_faces() -> None:
    assert sum(len(expected["scores"]) for expected in REFERENCE) == 6


def test_face_of_the_astronaut(detector: Predictor) -> None:
    answer = detector.predict({"IMAGE": _planes(PICTURES["astronaut"])})
    assert answer["SCORES"].shape == (1, 1)
    assert answer["SCORES"][0, 0] > 0.99
    x0, y0, x1, y1 = answer["BOXES"][0, 0] * 512
    assert 170 < x0 < 190 < 260 < x1 < 280
    assert 50 < y0 < 75 < 160 < y1 < 185
    left_eye, right_eye, nose, *mouth = answer["LANDMARKS"][0, 0] * 512
    assert left_eye[0] < nose[0] < right_eye[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(corner[1] for corner in mouth)
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in answer["LANDMARKS"][0, 0] * 512)


def test_picture_without_a_face_gives_a_row_of_zeros(detector: Predictor) -> None:
    answer = detector.predict({"IMAGE": _planes(PICTURES["coffee"])})
    assert answer["BOXES"].shape == (1, 1, 4)
    assert answer["LANDMARKS"].shape == (1, 1, 5, 2)
    assert not any(part.any() for part in answer.values())


def test_batch_equals_single(detector: Predictor) -> None:
    astronaut = PICTURES["astronaut"]
    twice = np.zeros_like(astronaut)
    twice[:256, :256] = twice[256:, 256:] = astronaut[::2, ::2]
    batch = _planes(astronaut, np.zeros_like(astronaut), twice, astronaut[:, ::-1])
    batch.flags.writeable = False
    together = detector.predict({"IMAGE": batch})
    found = (together["SCORES"] > 0).sum(1)
    assert found.tolist() == [1, 0, 2, 1]
    assert all(part.dtype == np.float32 for part in together.values())
    for i, count in enumerate(found):
        alone = detector.predict({"IMAGE": batch[i : i + 1]})
        assert (alone["SCORES"] > 0).sum() == count
        for name, part in alone.items():
            np.testing.assert_allclose(part[0, :count], together[name][i, :count], atol=1e-4)
            assert not together[name][i, count:].any()


def test_rows_are_sorted_and_within_the_picture(detector: Predictor) -> None:
    # A face cut by the border: the box reaches beyond the picture and is clipped.
    cut = PICTURES["astronaut, twice side by side"][:, 205:]
    answer = detector.predict({"IMAGE": _planes(cut)})
    assert answer["SCORES"].shape[1] >= 2
    assert (np.diff(answer["SCORES"][0]) <= 0).all()
    for name in ("BOXES", "LANDMARKS"):
        assert answer[name].min() >= 0
        assert answer[name].max() <= 1


def test_smallest_face_is_a_setting_of_the_card(network: MTCNN) -> None:
    card = ARCHITECTURE.card("default", weights=WeightsRecord(kind="official"))
    parameter = card.parameters["min_face_size"]
    for size, found in ((40, 1), (300, 0)):
        parameters = {"min_face_size": parameter.model_copy(update={"default": size})}
        changed = card.model_copy(update={"parameters": parameters})
        served = ARCHITECTURE.serve(network, changed, Device(), WEIGHTS)
        answer = served.predict({"IMAGE": _planes(PICTURES["astronaut"])})
        assert (answer["SCORES"] > 0).sum() == found


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (39, 500), (41, 41)])
def test_pictures_too_small_for_a_face(detector: Predictor, shape: tuple[int, int]) -> None:
    pixels = np.full((2, 3, *shape), 128, np.uint8)
    assert not detector.predict({"IMAGE": pixels})["SCORES"].any()


def test_noise_holds_no_face(detector: Predictor) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, 480, 640), dtype=np.uint8)
    assert not detector.predict({"IMAGE": noise})["SCORES"].any()


def test_equals_the_package(detector: Predictor) -> None:
    package = pytest.importorskip(
        "facenet_pytorch", reason="facenet-pytorch pins an old torch; compare where it is at hand"
    )
    reference = package.MTCNN(keep_all=True, min_face_size=40, select_largest=False).eval()
    picture = PICTURES["astronaut, twice side by side"]
    found = reference.detect(picture, landmarks=True)
    boxes, scores, landmarks = (np.asarray(part, np.float64) for part in found)
    (faces,) = _cascade(detector).detect(_planes(picture), 40)
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(faces.boxes, boxes[order], atol=1e-2)
    np.testing.assert_allclose(faces.scores, scores[order], atol=1e-5)
    np.testing.assert_allclose(faces.landmarks, landmarks[order], atol=1e-2)


def test_the_exported_cascade_is_on_the_card_and_needs_no_torch(folder: Path) -> None:
    card = Card.model_validate_json((folder / "card.json").read_text())
    assert (card.runtime, card.precision) == ("openvino", "float32")
    assert card.acceleration is not None
    assert card.acceleration.error is not None
    assert card.acceleration.error < 1e-4
    assert exported(folder).keys() == {"pnet", "rnet", "onet"}
    program = """
import sys
from pathlib import Path
import numpy as np
from models.runtimes.openvino import load
from service.triton.cards import Card
folder = Path(sys.argv[1])
served = load(Card.model_validate_json((folder / "card.json").read_text()), folder)
answer = served.predict({"IMAGE": np.zeros((2, 3, 60, 80), np.uint8)})
assert answer["BOXES"].shape == (2, 1, 4)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)


def test_boxes_need_float32_and_one_compilation(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    card = ARCHITECTURE.card("default", weights=WeightsRecord(kind="official"))
    with pytest.raises(NoRuntime, match="suffers from less than float32"):
        accelerate(card, tmp_path, precision="bfloat16")
    with pytest.raises(NoRuntime, match="every size of its inputs"):
        accelerate(card, tmp_path, runtime="compile")


def test_suppression_is_torchvisions() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 40, (300, 2))
    boxes = np.concatenate((corners, corners + rng.integers(0, 20, (300, 2))), 1)
    boxes = boxes.astype(np.float32)
    scores = rng.integers(0, 50, 300).astype(np.float32)  # many are equal
    for overlap in (0.5, 0.7):
        expected = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap)
        assert nms(boxes, scores, overlap).tolist() == expected.tolist()
    assert len(nms(boxes[:0], scores[:0], 0.5)) == 0
