"""The watched process tells a crash, a hang, an exception and a waste of memory apart."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from tests.fuzz import children
from tests.fuzz.children import Child


def _misbehave(pipe: Connection) -> None:
    """Serve as a child does, but with a decoder that does what it is told."""
    import asyncio
    import os
    import signal
    import time

    from tests.fuzz import target

    async def outcome(data: bytes) -> str:
        if data == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if data == b"hang":
            time.sleep(60)  # noqa: ASYNC251
        if data == b"raise":
            raise ValueError("told to")
        if data == b"waste":
            await asyncio.sleep(0)
            assert len(b"x" * (children.MEMORY_BYTES + 2**25))
        return "picture"

    target.outcome = outcome
    _SERVE(pipe)


_SERVE = children._serve


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setattr(children, "_serve", _misbehave)
    monkeypatch.setattr(children, "SECONDS", 4.0)
    child = Child()
    yield child
    child.stop()


def test_failures_are_told_apart_and_the_next_file_is_examined(child: Child) -> None:
    found = {name: child.examine(name.encode()) for name in ("crash", "hang", "raise", "waste")}
    assert {name: verdict.failure for name, verdict in found.items()} == {
        "crash": "crash",
        "hang": "hang",
        "raise": "exception",
        "waste": "memory",
    }
    assert found["crash"].detail == "exit -11"
    assert "ValueError: told to" in found["raise"].detail
    assert child.examine(b"fine").outcome == "picture"
