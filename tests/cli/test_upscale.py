"""`vitrine upscale`: a job that is followed, its picture in a file, sizes in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.client import Client

DOCUMENT: dict[str, Any] = {
    "model": "larger",
    "warning": "demo weights",
    "scale": 4,
    "size": {"width": 80, "height": 40},
    "image": {"width": 20, "height": 10},
    "tiles": 6,
}
PROGRESS = {"percent": 50.0, "step": 3, "steps": 6, "stage": "upscaling", "eta_s": None}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def upscale(self: Client, path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        seen.append(parameters)
        return {"id": "job_1"}

    def follow(self: Client, id: str) -> Iterator[dict[str, Any]]:
        job = {"id": id, "state": "running", "progress": PROGRESS}
        yield job
        result = {"document": DOCUMENT, "files": [{"name": "upscaled.webp"}]}
        yield job | {"state": "succeeded", "result": result}

    monkeypatch.setattr(Client, "upscale", upscale)
    monkeypatch.setattr(Client, "follow", follow)
    monkeypatch.setattr(Client, "result", lambda self, id, name: ("image/webp", name.encode()))
    return seen


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["upscale", *map(str, arguments), "--url", "http://127.0.0.1:9"])


def test_the_picture_is_written_and_its_size_told(
    tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    picture, larger = tmp_path / "a.jpg", tmp_path / "large.webp"
    picture.write_bytes(b"a photo")
    shown = run(picture, "-o", larger, "--model", "larger", "--tile", 128)
    assert shown.exit_code == 0, shown.output
    assert larger.read_bytes() == b"upscaled.webp"
    assert asked == [
        {"model": "larger", "format": "webp", "tiling": None, "tile": 128, "overlap": None}
    ]
    for said in ("20 x 10 to 80 x 40", "4 times", "demo weights", "large.webp"):
        assert said in shown.output
    shown = run(picture, "-o", larger, "--json")
    assert json.loads(shown.stdout) == DOCUMENT


def test_other_formats_are_refused_before_anything_is_sent(
    tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"a photo")
    assert run(picture, "-o", tmp_path / "b.gif").exit_code == 2
    assert asked == []
