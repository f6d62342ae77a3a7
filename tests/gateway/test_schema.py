"""The OpenAPI document against the real gateway: schemathesis sends what it allows and what it forbids.

More of it: `VITRINE_SCHEMA_EXAMPLES=1000 pytest tests/gateway/test_schema.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings, strategies
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.app import create_app
from service.settings import Settings
from tests.fuzz.requests import run
from tests.fuzz.seeds import seeds
from tests.fuzz.system import KEY, system

EXAMPLES = int(os.environ.get("VITRINE_SCHEMA_EXAMPLES", "0"))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with system(tmp_path_factory.mktemp("system")) as url:
        yield url


# Pictures schemathesis makes itself; clips are these.
schemathesis.openapi.media_type(
    "video/mp4", strategies.deferred(lambda: strategies.sampled_from(list(seeds().values())))
)
schemathesis.serializer.alias("video/*", "application/octet-stream")
schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
# No schema can say which bytes are a picture, which address may be fetched, or that a parameter
# in the query must not contradict the body.
TASKS = (
    "/v1/classify",
    "/v1/deepfake",
    "/v1/detect",
    "/v1/embed",
    "/v1/explain",
    "/v1/generate/image",
    "/v1/reconstruct",
    "/v1/segment",
    "/v1/upscale",
)


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    document = create_app(Settings()).openapi()
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.mark.parametrize(("method", "path", "operation"), operations())
def test_every_operation_is_described(method: str, path: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    for parameter in operation.get("parameters", ()):
        assert parameter["description"], parameter["name"]
    for body in operation.get("requestBody", {}).get("content", {}).values():
        assert body["schema"]
    for status, response in operation["responses"].items():
        assert response["description"]
        if int(status) < 400 or (path, status) == ("/readyz", "503"):
            continue
        problem = response["content"]["application/problem+json"]
        codes = problem["schema"]["allOf"][1]["properties"]["code"]["enum"]
        assert problem["example"]["code"] in codes
        assert problem["example"]["status"] == int(status)


def test_the_names_of_operations_are_stable() -> None:
    """Generated clients name their methods by these; a new one is added here, none changes."""
    assert {operation["operationId"] for _, _, operation in operations()} == {
        "cancel_job",
        "classify",
        "deepfake",
        "delete_examples",
        "detect",
        "embed",
        "explain",
        "follow_job",
        "generate_image",
        "get_examples",
        "get_job",
        "get_model",
        "get_result",
        "get_result_file",
        "list_examples",
        "list_jobs",
        "list_models",
        "livez",
        "load_model",
        "metrics",
        "readyz",
        "reconstruct",
        "segment",
        "unload_model",
        "upscale",
    }


def test_a_method_that_a_path_does_not_take(url: str) -> None:
    answer = httpx2.put(f"{url}/v1/jobs/job_0", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET"
    assert answer.json()["code"] == "method_not_allowed"


@schema.parametrize()
@settings(
    max_examples=EXAMPLES or 10,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_answers_are_as_documented(case: schemathesis.Case, url: str) -> None:
    case.call_and_validate(
        base_url=url,
        timeout=20,
        headers={"Authorization": f"Bearer {KEY}"},
        excluded_checks=[positive_data_acceptance] if case.path in TASKS else [],
    )


def test_requests_as_no_client_sends_them(url: str) -> None:
    """A short run of `python -m tests.fuzz.requests`."""
    found = run(url, seed=0, count=200)
    assert not found.failures
    assert {"400", "415", "422"} <= found.answers.keys()
