"""`vitrine embed`: how alike pictures are, and labels by examples."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli.embed import cosine
from service.cli.main import app
from service.client import Client


def test_cosines_are_those_between_rows() -> None:
    found = cosine(np.array([[3, 4], [4, 3], [-3, -4], [0, 0]], np.float32))
    np.testing.assert_allclose(
        found,
        [[1, 0.96, -1, 0], [0.96, 1, -0.96, 0], [-1, -0.96, 1, 0], [0, 0, 0, 0]],
        atol=1e-6,
    )
    assert found.max() <= 1


def test_length_does_not_matter() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert cosine(vectors) == pytest.approx(cosine(vectors * 7), abs=1e-6)


def test_labels_are_sent_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def embed(self: Client, paths: Sequence[Path], parameters: dict[str, Any]) -> dict[str, Any]:
        asked.append(parameters)
        vector = base64.b64encode(np.ones(4, "<f4").tobytes()).decode()
        labels = (parameters["labels"] or "").split(",")
        found = [{"label": "cat", "similarity": 0.875}, {"label": "dog", "similarity": 0.5}]
        rows = [
            {
                "name": path.name,
                "embedding": vector,
                "predictions": None if label else found,
            }
            for path, label in zip(paths, labels, strict=True)
        ]
        return {"model": "encoder", "dimensions": 4, "data": rows}

    monkeypatch.setattr(Client, "embed", embed)
    pictures = [tmp_path / name for name in ("a.png", "b.png")]
    for picture in pictures:
        picture.write_bytes(b"a picture")

    def run(*arguments: object) -> str:
        words = ["embed", *map(str, arguments), "--url", "http://127.0.0.1:9"]
        shown = CliRunner().invoke(app, words)
        assert shown.exit_code == 0, shown.output
        return shown.output

    first = run(*pictures, "--labels", "cat,", "--keep", "pets").splitlines()
    assert first[1].split() == ["a.png", "example"]
    assert first[2].split() == ["b.png", "cat", "0.875"]
    assert run(pictures[1], "--examples", "pets").splitlines()[1].split() == [
        "b.png",
        "cat",
        "0.875",
    ]
    given = [{name: p[name] for name in ("labels", "keep", "examples")} for p in asked]
    assert given == [
        {"labels": "cat,", "keep": "pets", "examples": None},
        {"labels": None, "keep": None, "examples": "pets"},
    ]
