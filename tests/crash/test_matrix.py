"""Twenty rounds of the crash matrix with a fixed seed."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.crash import faults
from tests.crash.matrix import Tally, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# One whose plan has every fault of every part, and both kinds of poison.
SEED = 61


def twenty_rounds(folder: Path) -> Tally:
    return asyncio.run(run(20, SEED, 20, folder, lambda tally: None))


def test_what_is_accepted_ends_once_whatever_dies(tmp_path: Path) -> None:
    # It counts the processes below its own, which here are those of other tests too.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
        tally = own.submit(twenty_rounds, tmp_path).result()
    assert not tally.violation, tally.violation
    assert len(tally.rounds) == 20
    planned = {
        (fault.kind, fault.part.partition("-")[0]) for each in tally.rounds for fault in each.faults
    }
    assert planned == faults.POSSIBLE
    # It tested what it is for: jobs of all outcomes, faults that cost attempts, clients that came back.
    assert {"succeeded", "canceled", "refused"} <= set(tally.outcomes)
    assert {"failed: model_failed", "failed: worker_lost"} <= set(tally.outcomes)
    assert max(tally.attempts) > 1
    assert sum(tally.faults.values()) >= 20
    assert tally.met["replays"] > 0
    assert tally.met["resumed streams"] > 0
