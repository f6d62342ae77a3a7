"""`pull`: from a server of published files to an entry of the repository, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import registry
from models.architecture import Source
from models.registry import UnknownArchitecture
from models.repository import cards
from models.serving import Device
from models.weights import conversion
from models.weights.add import add
from models.weights.download import Patience
from models.weights.entry import downloads
from models.weights.errors import (
    LicenceNotAccepted,
    NameRefused,
    NotPublished,
    TransferFailed,
    UnreadableCheckpoint,
    WeightsError,
    WrongArchitecture,
    WrongLabels,
)
from models.weights.pull import pull
from tests.models.file_server import FileServer, file_server
from tests.models.tiny import Tiny, TinyPair, official_state, saved

WEIGHTS = saved({"model": official_state(), "epoch": 300})
AT_ONCE = Patience(attempts=2, first_pause_s=0.0)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        server.put("/tiny.pth", WEIGHTS)
        yield server


@pytest.fixture(autouse=True)
def papers(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two papers whose weights the server publishes."""
    tiny, pair = Tiny(), TinyPair()
    small = replace(tiny.variants["small"], sources=(Source(f"{server.url}/tiny.pth"),))
    only = replace(
        pair.variants["only"],
        sources=(
            Source("hf://lab/pair/tiny.pth"),
            Source("hf://lab/pair/mean.pth", part="mean"),
            Source("hf://lab/pair/notes/README.txt", part="note", format="raw"),
        ),
    )
    monkeypatch.setattr(tiny, "variants", {**tiny.variants, "small": small}, raising=False)
    monkeypatch.setattr(pair, "variants", {"only": only}, raising=False)
    for each in (tiny, pair):
        monkeypatch.setitem(registry._ARCHITECTURES, each.slug, each)
    monkeypatch.setattr(conversion, "architectures", lambda: {"tiny": tiny})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "data" / "repository"


def left(repository: Path) -> list[str]:
    """Return everything that lies about beside and in the repository."""
    return sorted(
        str(path.relative_to(repository.parent))
        for path in repository.parent.rglob("*")
        if path.is_file()
    )


ENTRY = [
    "repository/tiny-small/1/model.py",
    "repository/tiny-small/1/model.safetensors",
    "repository/tiny-small/config.pbtxt",
]


@pytest.mark.parametrize("name", ["tiny:small", "tiny-small"])
def test_published_weights_become_an_entry(server: FileServer, repository: Path, name: str) -> None:
    installed = pull(name, repository)
    (card,) = cards(repository)
    assert card == installed.card
    assert (card.id, card.weights.kind) == ("tiny-small", "official")
    assert card.weights.source == f"{server.url}/tiny.pth"
    assert card.weights.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert card.parameter_count == 4 * 3 + 4 + 8 + 4 * 3 + 3
    assert card.metrics != ()
    assert card.default
    assert left(repository) == ENTRY
    state = load_file(repository / "tiny-small" / "1" / "model.safetensors")
    assert torch.equal(state["head.bias"], official_state()["fc.bias"])


def test_what_is_pulled_is_not_pulled_again(server: FileServer, repository: Path) -> None:
    pull("tiny:small", repository)
    again = pull("tiny:small", repository)
    assert (again.fresh, again.card) == (False, cards(repository)[0])
    assert len(server.requests) == 1
    assert pull("tiny:small", repository, replace=True).fresh


def test_weights_of_ones_own_are_not_replaced_unasked(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "own.pth").write_bytes(WEIGHTS)
    add("tiny-small", "tiny:small", [tmp_path / "own.pth"], repository)
    with pytest.raises(NameRefused, match="--replace"):
        pull("tiny:small", repository)
    assert cards(repository)[0].weights.kind == "own"


def test_a_second_model_of_a_task_leaves_the_default_alone(
    server: FileServer, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.pth").write_bytes(WEIGHTS)
    add("mine", "tiny:small", [tmp_path / "own.pth"], repository, default=True)
    assert not pull("tiny:small", repository).card.default


def test_a_network_of_several_parts(
    server: FileServer, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "/lab/pair/resolve/main"
    server.put(f"{folder}/tiny.pth", WEIGHTS)
    server.put(f"{folder}/mean.pth", saved({"old_mean": torch.ones(3)}))
    server.put(f"{folder}/notes/README.txt", b"a note")
    installed = pull("tiny-pair", repository, hub=server.url, accept_licence=True)
    entry = repository / "tiny-pair-only" / "1"
    assert {path.name for path in entry.iterdir()} == {
        "model.py",
        "model.safetensors",
        "mean.safetensors",
        "note.txt",
    }
    predictor = registry.architecture("tiny-pair").load(installed.card, entry, Device())
    scores = predictor.predict({"IMAGE": np.zeros((2, 3, 8, 8), np.uint8)})["SCORES"]  # type: ignore[union-attr]
    assert scores.shape == (2, 3)


def test_parts_that_do_not_belong_together(server: FileServer, repository: Path) -> None:
    folder = "/lab/pair/resolve/main"
    server.put(f"{folder}/tiny.pth", WEIGHTS)
    server.put(f"{folder}/mean.pth", saved({"old_mean": torch.ones(5)}))
    server.put(f"{folder}/notes/README.txt", b"a note")
    with pytest.raises(WeightsError, match=r"tiny-pair-only would not load: mean is \(5,\)"):
        pull("tiny-pair", repository, hub=server.url, accept_licence=True)
    assert cards(repository) == []


def test_a_licence_for_some_uses_only_is_asked_about_first(
    server: FileServer, repository: Path
) -> None:
    with pytest.raises(LicenceNotAccepted, match=r"CC-BY-NC-4\.0.*--accept-licence"):
        pull("tiny-pair", repository, hub=server.url)
    assert server.requests == []
    assert not repository.parent.exists()


def test_a_broken_transfer_is_kept_and_finished_later(server: FileServer, repository: Path) -> None:
    file = server.files["/tiny.pth"]
    file.cut_after = [1000, 0, 0]
    with pytest.raises(TransferFailed):
        pull("tiny:small", repository, patience=AT_ONCE)
    assert cards(repository) == []
    assert [Path(name).suffix for name in left(repository)] == [".part", ".json"]
    pull("tiny:small", repository, patience=AT_ONCE)
    assert server.requests[-1][1]["range"] == "bytes=1000-"
    assert left(repository) == ENTRY


def test_a_file_that_is_gone(server: FileServer, repository: Path) -> None:
    del server.files["/tiny.pth"]
    with pytest.raises(NotPublished):
        pull("tiny:small", repository)
    assert left(repository) == []


def test_a_file_of_another_network(server: FileServer, repository: Path) -> None:
    server.put("/tiny.pth", saved(official_state(width=16)))
    with pytest.raises(WrongArchitecture, match="looks like tiny:big"):
        pull("tiny:small", repository)
    assert cards(repository) == []


def test_a_damaged_file_is_fetched_again_once_it_is_repaired(
    server: FileServer, repository: Path
) -> None:
    server.put("/tiny.pth", WEIGHTS[:-500])
    with pytest.raises(UnreadableCheckpoint):
        pull("tiny:small", repository)
    assert left(repository) == []
    server.put("/tiny.pth", WEIGHTS)
    assert pull("tiny:small", repository).fresh


def test_what_a_killed_process_left_is_cleared_away(repository: Path) -> None:
    old, current = (downloads(repository) / f"staging-{name}" for name in ("old", "current"))
    for folder in (old, current):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    os.utime(old, (0, 0))
    pull("tiny:small", repository)
    assert not old.exists()
    assert current.exists()


def test_a_file_of_other_classes(server: FileServer, repository: Path) -> None:
    server.put("/tiny.pth", saved(official_state(classes=5)))
    with pytest.raises(WrongLabels, match="file has 5 classes, tiny:small has 3 labels"):
        pull("tiny:small", repository)
    assert cards(repository) == []


def test_names_that_nothing_is_published_under(repository: Path) -> None:
    with pytest.raises(UnknownArchitecture, match="'tinny'"):
        pull("tinny", repository)
    with pytest.raises(UnknownArchitecture, match="no variant 'huge'"):
        pull("tiny:huge", repository)
    with pytest.raises(WeightsError, match=r"no weights of tiny:big .* those of tiny:small$"):
        pull("tiny:big", repository)
