"""Several media in one request: a form's parts, a list in JSON, and what is refused."""

from __future__ import annotations

import base64

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.settings import LimitSettings, Settings
from service.tasks.contract import Context, Outcome, Pipeline, Report, TaskParameters, Upload
from tests.gateway.conftest import build, in_process, settings_for
from tests.gateway.test_inputs import PNG, VIDEO, picture, refused
from tests.jobs.redis_server import RedisServer

JPEG = picture("JPEG")


class Count(Pipeline[TaskParameters]):
    """Says which media it got, and how often it ran."""

    name = "count"
    parameters = TaskParameters

    def __init__(self) -> None:
        self.runs = 0

    async def run(
        self, parameters: TaskParameters, upload: Upload | None, context: Context, report: Report
    ) -> Outcome:
        assert upload is not None
        self.runs += 1
        sent = (upload, *upload.more)
        assert not any(other.more for other in upload.more)
        return Outcome(
            {"types": [each.content_type for each in sent], "names": [each.name for each in sent]}
            | {"bytes": [len(each.read()) for each in sent], "run": self.runs}
        )


def app_of(settings: Settings) -> FastAPI:
    app, count = build(settings), Count()
    router = APIRouter(dependencies=[INFER])

    @router.post("/v1/count")
    async def post_count(request: Request) -> Response:
        return await dispatch(request, count, kinds=("image",), most=3)

    app.include_router(router)
    return app


@pytest.fixture
async def several(settings: Settings):
    async with in_process(app_of(settings)) as client:
        yield client


def form(*contents: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("file", (f"{n}.png", data, "image/png")) for n, data in enumerate(contents)]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_parts_of_a_form(several: httpx2.AsyncClient) -> None:
    answer = (await several.post("/v1/count", files=form(PNG, JPEG, PNG))).json()
    assert answer["types"] == ["image/png", "image/jpeg", "image/png"]
    assert answer["names"] == ["0.png", "1.png", "2.png"]
    assert answer["bytes"] == [len(PNG), len(JPEG), len(PNG)]


async def test_a_list_in_json(several: httpx2.AsyncClient) -> None:
    listed = [b64(PNG), f"data:image/jpeg;base64,{b64(JPEG)}"]
    for name in ("input", "image", "b64"):
        answer = (await several.post("/v1/count", json={name: listed})).json()
        assert answer["types"] == ["image/png", "image/jpeg"]


async def test_one_is_sent_as_ever(several: httpx2.AsyncClient) -> None:
    for body in (
        {"content": PNG},
        {"files": form(PNG)},
        {"json": {"b64": b64(PNG)}},
        {"json": {"input": [b64(PNG)]}},
    ):
        assert (await several.post("/v1/count", **body)).json()["bytes"] == [len(PNG)]


async def test_too_many(several: httpx2.AsyncClient) -> None:
    answer = await several.post("/v1/count", files=form(*[PNG] * 4))
    refused(answer, 400, "malformed_multipart", "3 files")
    for listed in ([b64(PNG)] * 4, []):
        answer = await several.post("/v1/count", json={"input": listed})
        refused(answer, 422, "invalid_parameter", "1 to 3 media")


async def test_what_is_wrong_with_one_of_them(several: httpx2.AsyncClient) -> None:
    answer = await several.post("/v1/count", files=form(PNG, VIDEO))
    refused(answer, 415, "unsupported_media", "video/mp4")
    answer = await several.post("/v1/count", files=form(PNG, b""))
    refused(answer, 400, "empty_body")
    answer = await several.post("/v1/count", json={"input": [b64(PNG), 7]})
    refused(answer, 422, "invalid_parameter", "int")
    answer = await several.post("/v1/count", json={"input": [b64(PNG), "&"]})
    refused(answer, 400, "malformed_base64")


async def test_elsewhere_a_list_is_refused(several: httpx2.AsyncClient) -> None:
    answer = await several.post("/v1/echo", json={"input": [b64(PNG)]})
    refused(answer, 422, "invalid_parameter", "must be a string", "list")
    answer = await several.post("/v1/echo", files=form(PNG, PNG))
    refused(answer, 400, "malformed_multipart", "more than one file")


async def test_a_job_takes_one(several: httpx2.AsyncClient) -> None:
    answer = await several.post("/v1/count?mode=async", files=form(PNG, PNG))
    refused(answer, 422, "invalid_parameter", "a job takes one medium")
    assert (await several.post("/v1/count?mode=async", content=PNG)).status_code == 202


async def test_the_same_key_with_another_second_medium_is_another_request(
    several: httpx2.AsyncClient,
) -> None:
    headers = {"Idempotency-Key": "one"}
    first = await several.post("/v1/count", files=form(PNG, PNG), headers=headers)
    again = await several.post("/v1/count", files=form(PNG, PNG), headers=headers)
    assert first.json()["run"] == again.json()["run"]
    assert again.headers["idempotency-replayed"] == "true"
    other = await several.post("/v1/count", files=form(PNG, JPEG), headers=headers)
    assert other.status_code in (409, 422)
    assert other.json()["code"].startswith("idempotency")


async def test_together_they_have_no_more_bytes_than_one_body(
    redis_server: RedisServer, tmp_path
) -> None:
    limits = LimitSettings(body_bytes=len(PNG) * 3, image_body_bytes=len(PNG) * 2)
    settings = settings_for(redis_server, tmp_path, limits=limits)
    async with in_process(app_of(settings)) as client:
        answer = await client.post("/v1/count", files=form(PNG, PNG, PNG))
        assert answer.status_code == 413
