"""`vitrine explain`: the map in a terminal, and the drawing in a file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.explain import shaded
from service.cli.main import app
from service.client import Client

ANSWER: dict[str, Any] = {
    "model": "shapes",
    "warning": None,
    "evidence": {
        "method": "hires-cam",
        "label": "square",
        "index": 1,
        "score": 0.7,
        "heatmap": [[0.0, 0.25], [0.5, 1.0]],
    },
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def explain(self: Client, path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        seen.append(parameters)
        data = "data:image/png;base64," + base64.b64encode(b"drawn").decode()
        files = [{"name": "overlay.png", "content_type": "image/png", "data": data}]
        return ANSWER | ({} if parameters["drawings"] == "none" else {"files": files})

    monkeypatch.setattr(Client, "explain", explain)
    return seen


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["explain", *map(str, arguments), "--url", "http://127.0.0.1:9"])


def test_shades_follow_the_values() -> None:
    assert shaded(ANSWER["evidence"]["heatmap"]) == ["  ░░", "▒▒██"]


def test_the_drawing_is_written(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    picture, drawing = tmp_path / "photo.jpg", tmp_path / "overlay.png"
    picture.write_bytes(b"a photo")
    shown = run(picture, "-o", drawing, "--class", 1, "--json")
    assert shown.exit_code == 0, shown.output
    assert drawing.read_bytes() == b"drawn"
    assert json.loads(shown.stdout) == ANSWER
    assert asked == [{"model": None, "class_index": 1, "drawings": "overlay"}]
    assert run(picture).exit_code == 0
    assert asked[1]["drawings"] == "none"


def test_a_drawing_is_a_png(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(b"a photo")
    assert run(picture, "-o", tmp_path / "overlay.jpg").exit_code == 2
    assert asked == []
