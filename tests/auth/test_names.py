"""What clients call their files is shown, and never becomes part of a path."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from service.jobs.queue import Queue
from service.settings import AuthSettings, Settings
from tests.gateway.test_inputs import PNG, VIDEO

NAMES = {
    "../../../etc/passwd": "passwd",
    "/etc/cron.d/job": "job",
    "..\\..\\windows\\system32\\evil.dll": "evil.dll",
    "C:\\a.png": "a.png",
    "..": "upload",
    ".": "upload",
    "/": "upload",
    "": "upload",
    "a\0b.png": "a_b.png",
    "a\r\nSet-Cookie: x.png": '"a',  # the line break ends the header
    "\x1b[31mred.png": "_[31mred.png",
    "${HOME}/$(id).png": "$(id).png",
    "x" * 1000 + ".png": "x" * 116 + ".png",
    "ü‮gnp.exe": "ü_gnp.exe",
    "uploads/job_0/x": "x",
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": AuthSettings(required=False)})


def form(name: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    quoted = name.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + quoted + b'"\r\n'
    body = head + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--x--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=x"}


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_the_name_of_an_upload(
    client: httpx2.AsyncClient, queue: Queue, tmp_path: Path, name: str
) -> None:
    for data in (PNG, VIDEO):
        body, headers = form(name, data)
        answer = await client.post("/v1/echo?mode=async", content=body, headers=headers)
        if answer.status_code == 400:  # some are no header at all
            assert answer.json()["code"] == "malformed_multipart"
            assert "\0" in name
            assert files(tmp_path) == set()
            continue
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["id"]
        claim = await queue.consumer("w").claim()
        assert claim is not None
        assert claim.submission.upload_name == NAMES[name]
        assert claim.submission.upload_key == f"uploads/{job_id}"
        assert files(tmp_path / "storage") == {f"uploads/{job_id}"}
        assert files(tmp_path) == {f"storage/uploads/{job_id}"}
        (tmp_path / "storage" / "uploads" / job_id).unlink()


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/document.json",
        "document.json",
        "a%00b",
        "..\\..\\x",
    ],
)
async def test_the_name_in_a_path(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.post("/v1/sleep-job", json={"seconds": 1})
    links = answer.json()["links"]
    found = await client.get(f"{links['result']}/{path}")
    assert found.status_code in (404, 409), found.text
    for page in ("/web/", "/docs/assets/"):
        found = await client.get(page + path)
        assert found.status_code == 404, found.text
