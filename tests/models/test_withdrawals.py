from __future__ import annotations

import os
from pathlib import Path

import pytest

from models import withdrawals

ID = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(withdrawals, "_SHARED_MEMORY", tmp_path)
    return tmp_path


def test_a_request_is_withdrawn_once_and_for_its_repository_only(marks: Path) -> None:
    here, there = Path("/here"), Path("/there")
    assert not withdrawals.is_withdrawn(here, ID)
    withdrawals.withdraw(here, ID)
    assert withdrawals.is_withdrawn(here, ID)
    assert not withdrawals.is_withdrawn(there, ID)
    withdrawals.forget(here, ID)
    assert not withdrawals.is_withdrawn(here, ID)
    withdrawals.forget(here, ID)


@pytest.mark.parametrize("id", ["", "../../etc/passwd", "x" * 32, ID + "0"])
def test_what_is_no_id_names_no_file(marks: Path, id: str) -> None:
    withdrawals.withdraw(Path("/here"), id)
    assert list(marks.iterdir()) == []


def test_marks_that_nobody_takes_away_go(marks: Path) -> None:
    withdrawals.withdraw(Path("/here"), ID)
    (mark,) = marks.iterdir()
    os.utime(mark, (1, 1))
    withdrawals.withdraw(Path("/here"), "f" * 32)
    assert not mark.exists()
    assert withdrawals.is_withdrawn(Path("/here"), "f" * 32)
