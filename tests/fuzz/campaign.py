"""Many damaged files through child processes: what came of them, and the files that broke something."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from random import Random

from tests.fuzz.children import Child, Verdict
from tests.fuzz.mutations import damage

_MINIMISING_TRIES = 60


@dataclass(frozen=True, slots=True)
class Case:
    """One damaged file: `number` and the campaign's seed make it again."""

    number: int
    seed_name: str
    damage: str
    data: bytes


@dataclass(slots=True)
class Campaign:
    """The figures of a run."""

    seed: int
    inputs: int
    seconds: float = 0.0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (format, outcome)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")
    failures: list[tuple[Case, Verdict]] = field(default_factory=list)

    def note(self, case: Case, verdict: Verdict) -> None:
        what = verdict.failure or verdict.outcome
        self.outcomes[case.seed_name.partition("-")[0], what] += 1
        name = f"{case.seed_name}, {case.damage}"
        self.slowest = max(self.slowest, (verdict.seconds, name))
        self.largest = max(self.largest, (verdict.memory_bytes, name))
        if verdict.failure:
            self.failures.append((case, verdict))


def cases(seed: int, inputs: int, seeds: dict[str, bytes]) -> Iterator[Case]:
    """Yield `inputs` damaged files, every seed in turn."""
    names = list(seeds)
    for number in range(inputs):
        name = names[number % len(names)]
        random = Random(f"{seed}/{number}")
        done, data = damage(random, name, seeds)
        yield Case(number, name, done, data)


def run(
    seed: int, inputs: int, seeds: dict[str, bytes], workers: int = 1, keep: Path | None = None
) -> Campaign:
    """Decode `inputs` damaged files; those that break something are minimised and written to `keep`."""
    campaign = Campaign(seed, inputs)
    started = time.monotonic()
    idle: SimpleQueue[Child] = SimpleQueue()
    children = [Child() for _ in range(workers)]
    for child in children:
        idle.put(child)

    def examine(case: Case) -> tuple[Case, Verdict]:
        child = idle.get()
        try:
            verdict = child.examine(case.data)
            if verdict.failure and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                name = f"{verdict.failure}-{seed}-{case.number}-{case.seed_name}"
                (keep / name).write_bytes(minimised(child, case.data, verdict))
                (keep / f"{name}.txt").write_text(f"{case.damage}\n{verdict.detail}\n")
            return case, verdict
        finally:
            idle.put(child)

    try:
        with ThreadPoolExecutor(workers) as threads:
            for case, verdict in threads.map(examine, cases(seed, inputs, seeds)):
                campaign.note(case, verdict)
    finally:
        for child in children:
            child.stop()
    campaign.seconds = time.monotonic() - started
    return campaign


def minimised(child: Child, data: bytes, verdict: Verdict) -> bytes:
    """Return a shorter file that fails in the same way, found in few tries; hangs stay as they are."""
    if verdict.failure == "hang":
        return data
    tries, size = 0, len(data) // 2
    while size >= 8 and tries < _MINIMISING_TRIES:
        place = 0
        while place < len(data) and tries < _MINIMISING_TRIES:
            shorter = data[:place] + data[place + size :]
            tries += 1
            if child.examine(shorter).failure == verdict.failure:
                data = shorter
            else:
                place += size
        size //= 2
    return data
