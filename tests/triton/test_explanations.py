"""Explanations through a real Triton: by gradients of the classifier that ships, and by T-TAME."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image
from safetensors.torch import save_file

from models.demo import shapes
from models.registry import architecture
from models.repository import shipped, write_catalogue, write_entry
from service.errors import BadInput
from service.settings import LimitSettings, Settings
from service.tasks.classify.pipeline import Classify
from service.tasks.classify.schemas import ClassifyParameters
from service.tasks.contract import Context, Upload, unreported
from service.tasks.explain.pipeline import Explain
from service.tasks.explain.schemas import ExplainParameters
from service.triton.cards import CATALOGUE, Task, WeightsRecord
from service.triton.grpc import TritonClient
from tests.triton.server import triton

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explanations")
    repository = folder / "repository"
    write_catalogue(repository)
    card, parts = shipped("convnext-demo")
    write_entry(repository, card, parts, "cpu")
    ttame = architecture("t-tame")
    torch.manual_seed(0)
    save_file(ttame.network(ttame.config("demo")).state_dict(), folder / "model.safetensors")
    card = ttame.card("demo", weights=WeightsRecord(kind="random"))
    write_entry(repository, card, {"model.safetensors": folder / "model.safetensors"}, "cpu")
    return repository


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(repository: Path) -> AsyncIterator[TritonClient]:
    async with triton(repository, [CATALOGUE, "convnext-demo", "t-tame-demo"]) as client:
        yield client


def scene(number: int, size: int = 64) -> tuple[np.ndarray, shapes.Scene]:
    pixels, drawn = shapes.draw(shapes.HELD_OUT + number, size)
    return pixels.transpose(2, 0, 1)[None], drawn


def wanted(index: int) -> np.ndarray:
    return np.array([[index]], np.int32)


async def test_a_classifier_explains_only_when_asked(client: TritonClient) -> None:
    pixels, _ = scene(0)
    plain = await client.infer("convnext-demo", {"IMAGE": pixels})
    assert plain.keys() == {"SCORES"}
    answer = await client.infer("convnext-demo", {"IMAGE": pixels, "CLASS": wanted(-1)})
    assert answer.keys() == {"SCORES", "HEATMAP", "METHOD"}
    np.testing.assert_allclose(answer["SCORES"], plain["SCORES"], atol=1e-5)
    assert answer["METHOD"].tolist() == [[b"hires-cam"]]
    assert answer["HEATMAP"].max() == pytest.approx(1)
    best = int(plain["SCORES"].argmax())
    named = await client.infer("convnext-demo", {"IMAGE": pixels, "CLASS": wanted(best)})
    np.testing.assert_allclose(named["HEATMAP"], answer["HEATMAP"], atol=1e-5)
    other = await client.infer("convnext-demo", {"IMAGE": pixels, "CLASS": wanted((best + 7) % 36)})
    assert np.abs(other["HEATMAP"] - answer["HEATMAP"]).max() > 0.1


async def test_the_evidence_lies_on_the_shape(client: TritonClient) -> None:
    """The map is far denser within the shape than in the whole picture."""
    gains = []
    for number in range(24):
        pixels, drawn = scene(number)
        answer = await client.infer("convnext-demo", {"IMAGE": pixels, "CLASS": wanted(-1)})
        values = Image.fromarray(answer["HEATMAP"][0].copy())
        grown = np.asarray(values.resize((64, 64), Image.Resampling.BILINEAR))
        gains.append(grown[drawn.mask(0)].mean() / grown.mean())
    assert np.mean(gains) > 2


async def test_requests_of_both_kinds_at_one_moment(client: TritonClient) -> None:
    async def one(number: int) -> dict[str, np.ndarray]:
        inputs = {"IMAGE": scene(number)[0]} | ({"CLASS": wanted(-1)} if number % 2 else {})
        return await client.infer("convnext-demo", inputs)

    answers = await asyncio.gather(*(one(number) for number in range(12)))
    for number, answer in enumerate(answers):
        assert ("HEATMAP" in answer) == bool(number % 2)
        alone = await one(number)
        for name in answer.keys() - {"METHOD"}:
            np.testing.assert_allclose(answer[name], alone[name], atol=1e-3)


async def test_a_class_that_there_is_not_fails_alone(client: TritonClient) -> None:
    pixels, _ = scene(1)
    answers = await asyncio.gather(
        *(client.infer("convnext-demo", {"IMAGE": pixels, "CLASS": wanted(i)}) for i in (3, 36, 5)),
        return_exceptions=True,
    )
    assert isinstance(answers[1], BadInput)
    assert "classes 0 to 35" in answers[1].message
    assert "HEATMAP" in answers[0]
    assert "HEATMAP" in answers[2]


async def test_t_tame_always_explains(client: TritonClient) -> None:
    answer = await client.infer("t-tame-demo", {"IMAGE": scene(0)[0]})
    assert answer["METHOD"].tolist() == [[b"t-tame"]]
    assert answer["HEATMAP"].shape == (1, 8, 8)
    assert answer["SCORES"].shape == (1, 36)


async def test_the_pipelines(client: TritonClient) -> None:
    file = BytesIO()
    Image.fromarray(scene(2, 256)[0][0].transpose(1, 2, 0)).save(file, "PNG")
    upload = Upload("image/png", file.getvalue())
    context = Context(Settings(limits=LimitSettings()), client)
    assert (await client.resolve(Task.EXPLANATION, None)).id == "t-tame-demo"
    for model, method in (("t-tame-demo", "t-tame"), ("convnext-demo", "hires-cam")):
        explained = await Explain().run(ExplainParameters(model=model), upload, context, unreported)
        assert explained.document["evidence"]["method"] == method
        assert {a.name for a in explained.attachments} == {"heatmap.png", "overlay.png"}
        classified = await Classify().run(
            ClassifyParameters(model=model, explain=True), upload, context, unreported
        )
        assert classified.document["evidence"] == explained.document["evidence"]
        assert (
            classified.document["evidence"]["label"]
            == classified.document["predictions"][0]["label"]
        )
