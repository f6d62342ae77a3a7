"""An exported model through a real Triton: without torch in its process until somebody wants an explanation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from models.demo import shapes
from models.registry import architecture
from models.repository import build
from models.serving import Device, Predictor
from service.triton.cards import CATALOGUE
from service.triton.grpc import TritonClient
from tests.triton.server import triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = "convnext-demo"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("runtimes") / "repository"
    (card,) = build(repository, "cpu", [ID])
    assert card.runtime == "openvino"
    return repository


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(repository: Path) -> AsyncIterator[TritonClient]:
    # The first explanation imports torch, which takes its time on a busy machine.
    async with triton(repository, [CATALOGUE, ID], timeout_s=250) as client:
        yield client


def pictures(count: int) -> np.ndarray:
    return np.stack(
        [shapes.draw(shapes.HELD_OUT + k, 64)[0].transpose(2, 0, 1) for k in range(count)]
    )


def libraries(repository: Path) -> str:
    """Return the files that are mapped into the model's process."""
    place = str(repository / ID / "1" / "model.py")
    (process,) = (p for p in psutil.process_iter(["cmdline"]) if place in (p.info["cmdline"] or ()))
    return Path(f"/proc/{process.pid}/maps").read_text()


async def test_answers_are_those_of_eager_float32(client: TritonClient, repository: Path) -> None:
    card = next(m.card for m in await client.models() if m.card.id == ID)
    eager = architecture(card.architecture).load(card, repository / ID / "1", Device())
    assert isinstance(eager, Predictor)
    images = pictures(12)
    expected = eager.predict({"IMAGE": images})["SCORES"]
    answers = await asyncio.gather(
        *(client.infer(ID, {"IMAGE": images[k : k + 1]}) for k in range(12))
    )
    together = await client.infer(ID, {"IMAGE": images})
    for scores in (np.concatenate([a["SCORES"] for a in answers]), together["SCORES"]):
        np.testing.assert_allclose(scores, expected, atol=0.08)
        assert (scores.argmax(1) == expected.argmax(1)).all()


async def test_torch_comes_with_the_first_explanation(
    client: TritonClient, repository: Path
) -> None:
    images = pictures(2)
    plain = await client.infer(ID, {"IMAGE": images})
    assert plain.keys() == {"SCORES"}
    mapped = libraries(repository)
    assert "libopenvino" in mapped
    assert "libtorch" not in mapped
    asked = {"IMAGE": images, "CLASS": np.array([[-1], [-1]], np.int32)}
    answer = await client.infer(ID, asked)
    assert answer["HEATMAP"].shape[0] == 2
    assert answer["METHOD"].tolist() == [[b"hires-cam"]] * 2
    np.testing.assert_array_equal(answer["SCORES"], plain["SCORES"])
    assert "libtorch" in libraries(repository)
    again = await client.infer(ID, {"IMAGE": images})
    np.testing.assert_array_equal(again["SCORES"], plain["SCORES"])
