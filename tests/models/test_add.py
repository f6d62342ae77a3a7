"""`add`: a checkpoint of one's own becomes an entry, is served, and is refused where it cannot be."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models import registry
from models.registry import UnknownArchitecture, architecture
from models.repository import cards, write_catalogue
from models.serving import Device
from models.weights import conversion
from models.weights.add import add
from models.weights.errors import (
    NameRefused,
    UnreadableCheckpoint,
    UnsafeCheckpoint,
    WeightsError,
    WrongLabels,
)
from models.weights.labels import read_labels
from service.errors import TritonUnavailable
from service.triton.cards import CATALOGUE, Card, Task
from service.triton.grpc import TritonClient
from tests.models.tiny import LABELS, Tiny, TinyPair, official_state, saved
from tests.triton.server import triton

FLOWERS = ("daisy", "iris", "lily", "rose", "tulip")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Tiny(), TinyPair()):
        monkeypatch.setitem(registry._ARCHITECTURES, each.slug, each)
    known = {"tiny": registry._ARCHITECTURES["tiny"]}
    monkeypatch.setattr(conversion, "architectures", lambda: known)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "data" / "repository"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pth"
    path.write_bytes(saved({"model": official_state(), "model_ema": official_state(seed=1)}))
    return path


def test_the_card_tells_whose_weights_they_are(repository: Path, checkpoint: Path) -> None:
    installed = add("mine", "tiny:small", [checkpoint], repository)
    (card,) = cards(repository)
    assert card == installed.card
    assert (card.id, card.variant, card.labels, card.default) == ("mine", "small", LABELS, False)
    assert card.weights.kind == "own"
    assert card.weights.source == "best.pth"
    assert card.weights.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert card.metrics == ()
    assert installed.warnings == ()
    assert sorted(p.name for p in repository.parent.rglob("*") if p.is_file()) == [
        "config.pbtxt",
        "model.py",
        "model.safetensors",
    ]


def test_other_classes_need_names(repository: Path, checkpoint: Path) -> None:
    checkpoint.write_bytes(saved(official_state(classes=5)))
    card = add("flowers", "tiny:small", [checkpoint], repository, labels=FLOWERS).card
    assert card.labels == FLOWERS
    entry = repository / "flowers" / "1"
    predictor = architecture("tiny").load(card, entry, Device())
    scores = predictor.predict({"IMAGE": np.zeros((1, 3, 8, 8), np.uint8)})["SCORES"]  # type: ignore[union-attr]
    assert scores.shape == (1, 5)
    with pytest.raises(WrongLabels, match="has 5 classes, the labels file has 3 names"):
        add("other", "tiny:small", [checkpoint], repository, labels=LABELS)
    unnamed = add("unnamed", "tiny:small", [checkpoint], repository)
    assert unnamed.card.labels == tuple(f"class {i}" for i in range(5))
    assert "--labels" in unnamed.warnings[0]


def test_a_wrapper_key_can_be_chosen(repository: Path, checkpoint: Path) -> None:
    add("average", "tiny:small", [checkpoint], repository, key="model_ema")
    state = load_file(repository / "average" / "1" / "model.safetensors")
    assert torch.equal(state["head.weight"], official_state(seed=1)["fc.weight"])
    with pytest.raises(UnreadableCheckpoint, match="'ema'; wrapper keys: model, model_ema"):
        add("other", "tiny:small", [checkpoint], repository, key="ema")


@pytest.mark.parametrize("name", ["", "Mine", "../mine", "a b", "-mine", "x" * 129, CATALOGUE])
def test_names_that_cannot_be(repository: Path, checkpoint: Path, name: str) -> None:
    with pytest.raises(NameRefused):
        add(name, "tiny:small", [checkpoint], repository)
    assert not repository.parent.exists()


def test_a_name_is_replaced_only_when_asked(repository: Path, checkpoint: Path) -> None:
    add("mine", "tiny:small", [checkpoint], repository)
    with pytest.raises(NameRefused, match="already; say --replace"):
        add("mine", "tiny:small", [checkpoint], repository)
    add("mine", "tiny:small", [checkpoint], repository, replace=True, storage="float16")
    state = load_file(repository / "mine" / "1" / "model.safetensors")
    assert state["head.weight"].dtype is torch.float16


def test_a_replacement_that_fails_leaves_what_was_there(repository: Path, checkpoint: Path) -> None:
    add("mine", "tiny:small", [checkpoint], repository)
    (entry,) = repository.iterdir()
    before = {p: p.read_bytes() for p in entry.rglob("*") if p.is_file()}
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(UnreadableCheckpoint):
        add("mine", "tiny:small", [checkpoint], repository, replace=True)
    assert {p: p.read_bytes() for p in entry.rglob("*") if p.is_file()} == before


def test_one_default_a_task(repository: Path, checkpoint: Path) -> None:
    add("first", "tiny:small", [checkpoint], repository, default=True)
    weights = (repository / "first" / "1" / "model.safetensors").read_bytes()
    add("second", "tiny:small", [checkpoint], repository, default=True)
    assert {card.id: card.default for card in cards(repository)} == {
        "first": False,
        "second": True,
    }
    assert (repository / "first" / "1" / "model.safetensors").read_bytes() == weights


def test_parts_are_given_by_name(repository: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(saved({"old_mean": torch.ones(3)}))
    (tmp_path / "n.txt").write_text("a note")
    parts = {"mean": tmp_path / "m.pth", "note.txt": tmp_path / "n.txt"}
    with pytest.raises(WeightsError, match=r"pair would not load: .*note\.txt"):
        add("pair", "tiny-pair", [checkpoint], repository, parts={"mean": tmp_path / "m.pth"})
    add("pair", "tiny-pair", [checkpoint], repository, parts=parts)
    assert {p.name for p in (repository / "pair" / "1").iterdir()} >= {
        "mean.safetensors",
        "note.txt",
    }


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("run",)


def test_what_is_refused_leaves_no_trace(repository: Path, checkpoint: Path) -> None:
    checkpoint.write_bytes(saved({"model": official_state(), "extra": Payload()}))
    with pytest.raises(UnsafeCheckpoint):
        add("mine", "tiny:small", [checkpoint], repository)
    with pytest.raises(UnknownArchitecture, match="no variant 'huge'"):
        add("mine", "tiny:huge", [checkpoint], repository)
    assert cards(repository) == []
    assert not repository.exists()


@pytest.mark.parametrize(
    "text",
    [
        "daisy\niris\r\n lily \nrose\ntulip\n\n",
        "\ufeffdaisy\niris\nlily\nrose\ntulip",
        json.dumps(FLOWERS),
        json.dumps({str(i): name for i, name in reversed(list(enumerate(FLOWERS)))}),
        json.dumps({str(i): [f"n{i}", name] for i, name in enumerate(FLOWERS)}),
    ],
    ids=["lines", "byte-order-mark", "list", "object", "imagenet"],
)
def test_labels_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "labels") == FLOWERS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no labels"),
        (b"[]", "holds no labels"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'["a", 3]', "label 1 is 3"),
        (b"a\n\nb", "label 1 is ''"),
        (b'{"0": "a", "2": "c"}', "none for class 1"),
        (b'{"a": "b"}', "class indices"),
        (b'["a"', "not valid JSON"),
    ],
)
def test_labels_files_that_are_none(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(WrongLabels, match=said):
        read_labels(tmp_path / "labels")
    with pytest.raises(WrongLabels, match="No such file"):
        read_labels(tmp_path / "absent")


def official_convnext(classes: int) -> dict[str, torch.Tensor]:
    """Return a small ConvNeXt under the names that its authors publish."""
    convnext = architecture("convnext")
    torch.manual_seed(0)
    network = convnext.network(convnext.config("demo", classes))
    names = (
        ("stem.", "downsample_layers.0."),
        ("head.norm.", "norm."),
        ("head.fc.", "head."),
        (".blocks.", "."),
        ("conv_dw", "dwconv"),
        ("mlp.fc", "pwconv"),
    )
    state = {}
    for name, tensor in network.state_dict().items():
        if ".downsample." in name:
            name = name.replace("stages", "downsample_layers").replace(".downsample.", ".")
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        state[name] = tensor
    return state


async def resolved(client: TritonClient, model: str) -> Card:
    """Ask for a model as the gateway does, again while it is being loaded."""
    while True:
        try:
            return await client.resolve(Task.CLASSIFICATION, model)
        except TritonUnavailable as loading:
            if loading.stable_code != "model_loading":
                raise
            await asyncio.sleep(0.5)


async def test_a_running_triton_serves_what_is_added(repository: Path, tmp_path: Path) -> None:
    write_catalogue(repository)
    (tmp_path / "convnext.pth").write_bytes(saved({"model": official_convnext(5), "epoch": 1}))
    async with triton(repository, [CATALOGUE]) as client:
        assert await client.models(Task.CLASSIFICATION) == []
        card = add(
            "flowers", "convnext", [tmp_path / "convnext.pth"], repository, labels=FLOWERS
        ).card
        assert await resolved(client, "flowers") == card
        image = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
        scores = (await client.infer("flowers", {"IMAGE": image}))["SCORES"]
        (state,) = await client.models(Task.CLASSIFICATION)
    assert (state.card, state.state) == (card, "ready")
    predictor = architecture("convnext").load(card, repository / "flowers" / "1", Device())
    expected = predictor.predict({"IMAGE": image})["SCORES"]  # type: ignore[union-attr]
    np.testing.assert_allclose(scores, expected, atol=0.02)
    assert scores.shape == (2, 5)
