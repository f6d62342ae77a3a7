"""`vitrine reconstruct`: the completed picture in a file, and how near it is in the terminal."""

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
    "model": "restorer",
    "warning": "random weights",
    "hidden": 0.898,
    "seed": 3,
    "psnr": 21.26,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def reconstruct(self: Client, path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
        seen.append(parameters)
        names = (
            ("restored.png", "seen.png") if parameters["pictures"] == "both" else ("restored.png",)
        )
        files = [
            {
                "name": name,
                "content_type": "image/png",
                "data": "data:image/png;base64," + base64.b64encode(name.encode()).decode(),
            }
            for name in names
        ]
        return ANSWER | {"files": files}

    monkeypatch.setattr(Client, "reconstruct", reconstruct)
    return seen


def run(*arguments: object) -> Any:
    return CliRunner().invoke(
        app, ["reconstruct", *map(str, arguments), "--url", "http://127.0.0.1:9"]
    )


def test_pictures_are_written_and_the_quality_is_told(
    tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    picture, restored, seen = (tmp_path / name for name in ("a.jpg", "restored.png", "b.png"))
    picture.write_bytes(b"a photo")
    shown = run(picture, "-o", restored, "--seen", seen, "--share", 0.9, "--seed", 3)
    assert shown.exit_code == 0, shown.output
    assert (restored.read_bytes(), seen.read_bytes()) == (b"restored.png", b"seen.png")
    assert asked == [{"model": None, "share": 0.9, "seed": 3, "pictures": "both"}]
    for said in ("90% hidden", "21.3 dB", "random weights"):
        assert said in shown.output


def test_the_answer_as_json(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    picture, restored = tmp_path / "a.jpg", tmp_path / "restored.png"
    picture.write_bytes(b"a photo")
    shown = run(picture, "-o", restored, "--json")
    assert json.loads(shown.stdout) == ANSWER
    assert asked == [{"model": None, "share": None, "seed": None, "pictures": "restored"}]


def test_pictures_are_pngs(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"a photo")
    assert run(picture, "-o", tmp_path / "b.jpg").exit_code == 2
    assert run(picture, "-o", tmp_path / "b.png", "--seen", tmp_path / "c.gif").exit_code == 2
    assert asked == []
