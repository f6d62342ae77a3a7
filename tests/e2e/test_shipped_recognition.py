"""Shipped embeddings and restorers over HTTP: what they say of held-out drawings is worth what their records say."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence

import httpx2
import numpy as np
import pytest

from models.demo.pictures import RADIOGRAPHS, SHAPES, PictureSet
from models.demo.recipes import mae_thorax, sit
from models.demo.recipes.classification import mean_auc
from models.shipped import SHIPPED
from tests.e2e.service import Service
from tests.e2e.test_main_job import png

pytestmark = pytest.mark.slow

_AT_ONCE = 64


def asked(service: Service, path: str, pictures: Sequence[np.ndarray], **form: str) -> dict:
    """Send pictures in one call, again while the model is loading on a busy machine, and unload nothing."""
    files = [("file", (f"{k}.png", png(p), "image/png")) for k, p in enumerate(pictures)]
    while True:
        answer = service.client.post(path, files=files, data=form)
        if answer.status_code != httpx2.codes.SERVICE_UNAVAILABLE:
            assert answer.status_code == httpx2.codes.OK, answer.text
            return answer.json()
        assert answer.json()["code"] == "model_loading", answer.text
        time.sleep(1)


@pytest.mark.parametrize(
    ("id", "pictures", "least"),
    [
        # Filled with the mean of what is seen: 14.5 and 15.3 dB.
        ("mae-thorax-reconstruction-demo", RADIOGRAPHS, 19.0),
        ("sit-reconstruction-demo", SHAPES, 19.0),
    ],
)
def test_hidden_pixels_of_held_out_drawings_are_predicted(
    service: Service, id: str, pictures: PictureSet, least: float
) -> None:
    if id not in SHIPPED:
        pytest.skip(f"{id} is not shipped")
    errors, hidden = 0.0, 0.0
    for seed in range(pictures.held_out_from, pictures.held_out_from + 40):
        drawn, _ = pictures.draw(seed, 64)
        answer = asked(service, "/v1/reconstruct", [drawn], model=id, seed=str(seed))
        errors += answer["hidden"] * 255**2 / 10 ** (answer["psnr"] / 10)
        hidden += answer["hidden"]
    service.client.post(f"/v1/models/{id}/unload").raise_for_status()
    assert 10 * np.log10(255**2 * hidden / errors) >= least


def vectors(service: Service, id: str, pictures: Sequence[np.ndarray]) -> np.ndarray:
    found = []
    for first in range(0, len(pictures), _AT_ONCE):
        part = pictures[first : first + _AT_ONCE]
        answer = asked(service, "/v1/embed", part, model=id, encoding_format="base64")
        rows = [base64.b64decode(row["embedding"]) for row in answer["data"]]
        found += [np.frombuffer(row, "<f4") for row in rows]
    service.client.post(f"/v1/models/{id}/unload").raise_for_status()
    return np.stack(found)


def test_findings_are_linear_in_the_vectors_of_x_rays(service: Service) -> None:
    seen = [RADIOGRAPHS.draw(seed, 64) for seed in range(512)]
    first = RADIOGRAPHS.held_out_from
    held_out = [RADIOGRAPHS.draw(seed, 64) for seed in range(first, first + 192)]
    drawn = [pixels for pixels, _ in seen + held_out]
    found = vectors(service, "mae-thorax-encoder-demo", drawn)
    labels = np.array([labels for _, labels in seen])
    scores = mae_thorax.probe(found[:512], labels, found[512:])
    assert mean_auc(scores, np.array([labels for _, labels in held_out])) >= 0.93


def test_labels_never_seen_in_training_are_told_by_examples(service: Service) -> None:
    first = SHAPES.held_out_from
    drawn = [SHAPES.draw(seed, 64) for seed in range(first, first + 600)]
    unseen = [(pixels, label) for pixels, label in drawn if label in sit.UNSEEN]
    found = vectors(service, "sit-demo", [pixels for pixels, _ in unseen])
    assert sit.few_shot(found, np.array([label for _, label in unseen])) >= 0.9
