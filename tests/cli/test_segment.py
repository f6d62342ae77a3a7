"""`vitrine segment`: the overlay in a file, the segments in the terminal."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.client import Client

ANSWER: dict[str, Any] = {
    "model": "segmenter",
    "kind": "panoptic",
    "warning": "random weights",
    "depth": 4,
    "segments": [
        {"id": 1, "label": "cat", "score": 0.91, "share": 0.25, "box": [1, 2, 30, 40]},
        {"id": 2, "label": "dog", "score": 0.5, "share": 0.01, "box": [5, 5, 9, 9]},
    ],
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def segment(self: Client, path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        seen.append(parameters)
        names = ["mask.png"] if parameters["format"] == "png" else []
        names += ["overlay.png"] if parameters["overlay"] else []
        prefix = "data:image/png;base64,"
        files = [
            {"name": name, "data": prefix + base64.b64encode(name.encode()).decode()}
            for name in names
        ]
        empty = {"segments": []} if parameters["model"] == "blind" else {}
        return ANSWER | empty | ({"files": files} if files else {})

    monkeypatch.setattr(Client, "segment", segment)
    return seen


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"a photo")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["segment", *map(str, arguments), "--url", "http://127.0.0.1:9"])


def test_pictures_are_written_and_segments_listed(photo: Path, asked: list[dict[str, Any]]) -> None:
    drawn, mask = photo.with_name("drawn.png"), photo.with_name("mask.png")
    shown = run(photo, "-o", drawn, "--mask", mask, "--depth", "auto")
    assert shown.exit_code == 0, shown.output
    assert (drawn.read_bytes(), mask.read_bytes()) == (b"overlay.png", b"mask.png")
    assert asked == [{"model": None, "format": "png", "overlay": True, "depth": "auto"}]
    for said in ("cat", "0.91", "25.0%", "1, 2, 30, 40", "4 layers", "random weights"):
        assert said in shown.output


def test_the_answer_as_json(photo: Path, asked: list[dict[str, Any]]) -> None:
    shown = run(photo, "--json", "--format", "polygons")
    assert json.loads(shown.stdout) == ANSWER
    assert asked == [{"model": None, "format": "polygons", "overlay": False, "depth": None}]


def test_an_empty_scene(photo: Path, asked: list[dict[str, Any]]) -> None:
    assert "Nothing found." in run(photo, "--model", "blind").output


def test_what_is_refused(photo: Path, asked: list[dict[str, Any]]) -> None:
    assert run(photo, "-o", photo.with_name("b.jpg")).exit_code == 2
    assert run(photo, "--json", "--mask", photo.with_name("b.png")).exit_code == 2
    assert asked == []
