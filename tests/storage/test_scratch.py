"""Temporary directories: gone after use, and after the death of who used them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from service.storage.scratch import remove_abandoned, scratch


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_gone_afterwards(place: Path) -> None:
    with scratch() as folder:
        (folder / "file").write_bytes(b"x")
        assert folder.parent == place
    assert list(place.iterdir()) == []


def test_what_is_in_use_stays(place: Path) -> None:
    with scratch() as folder:
        remove_abandoned()
        assert folder.exists()


def test_what_a_killed_process_left_is_removed(place: Path) -> None:
    program = (
        "import os, signal\n"
        "from service.storage.scratch import scratch\n"
        "with scratch() as folder:\n"
        "    (folder / 'file').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {"TMPDIR": str(place), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    (left,) = place.iterdir()
    assert (left / "file").exists()
    remove_abandoned()
    assert list(place.iterdir()) == []
