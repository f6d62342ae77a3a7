"""`vitrine detect`: a table in the terminal, the drawing in a file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.client import Client

FOUND = {"label": "red circle", "index": 0, "score": 0.934, "box": [10.4, 3.0, 40.2, 31.7]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def detect(self: Client, path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        seen.append(parameters)
        answer: dict[str, Any] = {
            "model": "detector",
            "warning": "demo weights",
            "threshold": 0.3,
            "detections": [FOUND] if parameters["classes"] != "none" else [],
        }
        if parameters["overlay"] == "true":
            data = "data:image/png;base64," + base64.b64encode(b"drawn").decode()
            answer["files"] = [{"name": "overlay.png", "data": data}]
        return answer

    monkeypatch.setattr(Client, "detect", detect)
    return seen


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["detect", *map(str, arguments), "--url", "http://127.0.0.1:9"])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"a photo")
    return path


def test_objects_are_listed_and_drawn(picture: Path, asked: list[dict[str, Any]]) -> None:
    drawn = picture.with_name("found.png")
    shown = run(picture, "-o", drawn, "--threshold", 0.5, "--max", 7)
    assert shown.exit_code == 0, shown.output
    assert drawn.read_bytes() == b"drawn"
    for said in ("red circle", "0.93", "10, 3, 40, 32", "demo weights"):
        assert said in shown.output
    assert asked == [
        {
            "model": None,
            "threshold": 0.5,
            "max_detections": 7,
            "classes": None,
            "masks": "true",
            "overlay": "true",
        }
    ]


def test_json_and_nothing_found(picture: Path, asked: list[dict[str, Any]]) -> None:
    assert json.loads(run(picture, "--json").stdout)["detections"] == [FOUND]
    assert "Nothing scores above 0.3" in run(picture, "--classes", "none").output
    assert [(a["masks"], a["overlay"]) for a in asked] == [("true", "false"), ("false", "false")]


def test_the_drawing_is_a_png(picture: Path, asked: list[dict[str, Any]]) -> None:
    assert run(picture, "-o", picture.with_name("b.jpg")).exit_code == 2
    assert asked == []
