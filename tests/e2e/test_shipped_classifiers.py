"""Every shipped classifier over HTTP: loaded on first use, right about held-out pictures, unloaded."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest

from models.demo.recipes.classification import RECIPES
from models.shipped import SHIPPED
from tests.e2e.service import Service
from tests.e2e.test_main_job import png

pytestmark = pytest.mark.slow

COUNT = 200
TARGET = 0.95
CLASSIFIERS = sorted(RECIPES.keys() & SHIPPED.keys())


@pytest.fixture(scope="module")
def measured(service: Service) -> dict[str, float]:
    """Score of every classifier; two at a time, so that one loads while the other answers."""
    with ThreadPoolExecutor(2) as pool:
        scores = pool.map(lambda id: _score(service, id), CLASSIFIERS)
        return dict(zip(CLASSIFIERS, scores, strict=True))


def test_only_defaults_were_loaded_at_the_start(service: Service) -> None:
    listed = service.client.get("/v1/models").raise_for_status().json()["data"]
    shown = {model["id"]: model for model in listed}
    assert set(CLASSIFIERS) <= shown.keys()
    assert [id for id in CLASSIFIERS if shown[id]["default"]] == ["convnext-demo"]
    assert shown["convnext-demo"]["state"] == "ready"
    others = set(CLASSIFIERS) - {"convnext-demo"}
    assert {shown[id]["state"] for id in others} <= {"unloaded"}


@pytest.mark.parametrize("id", CLASSIFIERS)
def test_held_out_pictures_are_named(measured: dict[str, float], id: str) -> None:
    assert measured[id] >= TARGET


def _score(service: Service, id: str) -> float:
    recipe = RECIPES[id]
    first = recipe.pictures.held_out_from
    drawn = [recipe.pictures.draw(seed, 64) for seed in range(first, first + COUNT)]
    bodies = [png(pixels) for pixels, _ in drawn]
    labels = service.client.get(f"/v1/models/{id}").raise_for_status().json()["labels"]

    def ask(body: bytes) -> httpx2.Response:
        return service.client.post(
            "/v1/classify",
            params={"model": id, "top_k": len(labels)},
            content=body,
            headers={"Content-Type": "image/png"},
        )

    def scores(body: bytes) -> list[float]:
        answer = ask(body)
        assert answer.status_code == httpx2.codes.OK, answer.text
        found = {row["label"]: row["score"] for row in answer.json()["predictions"]}
        return [found[label] for label in labels]

    # The first call loads the model; on a busy machine that takes longer than a call waits.
    while (answer := ask(bodies[0])).status_code == httpx2.codes.SERVICE_UNAVAILABLE:
        assert answer.json()["code"] == "model_loading", answer.text
        time.sleep(1)
    with ThreadPoolExecutor(8) as pool:
        answers = np.array(list(pool.map(scores, bodies)))
    if id != "convnext-demo":
        service.client.post(f"/v1/models/{id}/unload").raise_for_status()
    return recipe.score[1](answers, np.array([truth for _, truth in drawn]))
