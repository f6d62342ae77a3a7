"""The model repository: entries are whole or absent, and follow their cards."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from models import repository as repo
from models.entries import InvalidEntry, read_card
from models.registry import architecture
from models.shipped import SHIPPED
from service.triton.cards import CATALOGUE, WeightsRecord


def test_build_writes_what_ships_and_is_idempotent(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    first = repo.build(repository, "cpu")
    assert {c.id for c in first} == {c.id for c in repo.cards(repository) if c.default}
    assert {c.id for c in repo.cards(repository)} == set(SHIPPED)
    assert (repository / CATALOGUE / "1" / "model.py").exists()
    written = {p: p.stat().st_mtime_ns for p in repository.glob("[!v]*/config.pbtxt")}
    assert repo.build(repository, "cpu") == first
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert [p.name for p in tmp_path.iterdir()] == ["repository"]


def test_build_refuses_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"no model 'nothing'.*convnext-demo"):
        repo.build(tmp_path / "repository", "cpu", ["nothing"])


def test_the_card_survives_the_configuration(tmp_path: Path) -> None:
    card, parts = repo.shipped("convnext-demo")
    entry = repo.write_entry(tmp_path / "repository", card, parts, "cpu")
    assert read_card(entry / "config.pbtxt") == card
    assert (entry / "1" / "model.safetensors").stat().st_size > 0


def test_the_configuration_batches_and_warms_up() -> None:
    card, _ = repo.shipped("convnext-demo")
    config = repo.config(card, "cpu")
    assert config.max_batch_size == architecture("convnext").max_batch
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert list(config.input[0].dims) == [3, 64, 64]
    assert config.model_warmup[0].inputs["IMAGE"].dims == [3, 64, 64]
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    assert repo.config(card, "cuda").instance_group[0].kind == config.instance_group[0].KIND_GPU
    streamed = repo.config(repo.shipped("micro-dit-demo")[0], "cpu")
    assert streamed.model_transaction_policy.decoupled
    assert not streamed.model_warmup


def test_an_entry_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    card, parts = repo.shipped("convnext-demo")
    repository = tmp_path / "repository"
    with pytest.raises(FileNotFoundError):
        repo.write_entry(repository, card, {**parts, "more.bin": tmp_path / "absent"}, "cpu")
    assert list(repository.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["repository"]


def test_an_entry_is_replaced_whole(tmp_path: Path) -> None:
    card, parts = repo.shipped("convnext-demo")
    repository = tmp_path / "repository"
    repo.write_entry(repository, card, parts, "cpu")
    other = card.model_copy(update={"title": "another"})
    repo.write_entry(repository, other, parts, "cpu")
    assert [c.title for c in repo.cards(repository)] == ["another"]
    repo.remove_entry(repository, card.id)
    assert repo.cards(repository) == []
    with pytest.raises(KeyError, match="no model 'convnext-demo'"):
        repo.remove_entry(repository, card.id)


def test_a_new_device_changes_the_configuration_only(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repo.build(repository, "cpu")
    weights = repository / "convnext-demo" / "1" / "model.safetensors"
    before = weights.stat().st_ino
    repo.build(repository, "cuda")
    assert "KIND_GPU" in (repository / "convnext-demo" / "config.pbtxt").read_text()
    assert weights.stat().st_ino == before


def test_entries_of_the_user_stay(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    made = architecture("convnext")
    weights = tmp_path / "model.safetensors"
    save_file(made.network(made.config("demo")).state_dict(), weights)
    card = made.card("demo", id="mine", weights=WeightsRecord(kind="own"))
    repo.write_entry(repository, card, {"model.safetensors": weights}, "cpu")
    repo.build(repository, "cpu")
    assert "mine" in {c.id for c in repo.cards(repository)}


def test_an_entry_without_a_card_says_so(tmp_path: Path) -> None:
    entry = tmp_path / "repository" / "broken" / "config.pbtxt"
    entry.parent.mkdir(parents=True)
    entry.write_text('name: "broken"\nbackend: "python"\n')
    with pytest.raises(InvalidEntry, match="broken"):
        read_card(entry)
    assert repo.cards(tmp_path / "repository") == []
