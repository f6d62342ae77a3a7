"""Twenty rounds of the crash matrix with a fixed seed, on two systems side by side: half of the time goes into waiting."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.crash import faults
from tests.crash.matrix import Tally, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# One whose plan has every fault of every part, and both kinds of poison.
SEED = 61
ROUNDS = (range(10), range(10, 20))


def rounds(numbers: range, folder: Path) -> Tally:
    return asyncio.run(run(numbers, SEED, 20, folder, lambda tally: None))


def test_what_is_accepted_ends_once_whatever_dies(tmp_path: Path) -> None:
    folders = [tmp_path / str(numbers.start) for numbers in ROUNDS]
    for folder in folders:
        folder.mkdir()
    # Each counts the processes below its own, which here are those of other tests too.
    with ProcessPoolExecutor(len(ROUNDS), multiprocessing.get_context("spawn")) as own:
        tallies = list(own.map(rounds, ROUNDS, folders))
    assert not [tally.violation for tally in tallies if tally.violation]
    assert [len(tally.rounds) for tally in tallies] == [10, 10]
    planned = {
        (fault.kind, fault.part.partition("-")[0])
        for tally in tallies
        for each in tally.rounds
        for fault in each.faults
    }
    assert planned == faults.POSSIBLE
    # It tested what it is for: jobs of all outcomes, faults that cost attempts, clients that came back.
    outcomes = sum((tally.outcomes for tally in tallies), Counter())
    assert {"succeeded", "canceled", "refused"} <= set(outcomes)
    assert {"failed: model_failed", "failed: worker_lost"} <= set(outcomes)
    assert max(max(tally.attempts) for tally in tallies) > 1
    assert sum(tally.faults.total() for tally in tallies) >= 20
    met = sum((tally.met for tally in tallies), Counter())
    assert met["replays"] > 0
    assert met["resumed streams"] > 0
