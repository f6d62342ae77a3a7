"""Rounds: a burst of orders and a few faults, then everything settles and is checked."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from service.jobs.janitor import Janitor
from service.jobs.queue import Queue
from service.jobs.record import new_job_id
from service.settings import JobSettings
from service.storage.store import Store
from tests.crash import faults
from tests.crash.checks import Checks, Record, outcome
from tests.crash.clients import FINAL, Client, Violation
from tests.crash.orders import POISONS, draw
from tests.crash.system import System, connect, running

_SETTLE_S = 60.0
_POISON_EVERY = 5


@dataclass
class Round:
    """What one round did and how its orders ended."""

    number: int
    faults: list[faults.Fault]
    outcomes: Counter[str]
    seconds: float


@dataclass
class Tally:
    """All rounds so far. `violation` is the report of the one that ended the run, if any."""

    seed: int
    rounds: list[Round] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    strays: int = 0
    jobs: int = 0
    violation: str = ""

    @property
    def outcomes(self) -> Counter[str]:
        return sum((round.outcomes for round in self.rounds), Counter())


async def run(
    rounds: Sequence[int],
    seed: int,
    jobs: int,
    folder: Path,
    show: Callable[[Tally], None],
) -> Tally:
    """Run the rounds of these numbers, each of about `jobs` jobs, on a system in `folder`; end at the first violation."""
    tally = Tally(seed)
    async with running(folder) as system:
        redis = await connect(system)
        client = Client(list(system.gateways.values()), random.Random(seed))
        tally.met = client.counts
        checks = Checks(system, redis, client)
        try:
            for number in rounds:
                await _round(number, seed, jobs, system, checks, tally)
                show(tally)
            await _clear(system, checks)
        except Violation as violation:
            tally.violation = await report(violation, tally, system, checks)
        finally:
            tally.strays = len(checks.strays)
            await client.close()
            await redis.aclose()
    if not tally.violation and (left := system.strangers()):
        tally.violation = f"seed {seed}: processes are left at the end: {left}"
    show(tally)
    return tally


async def _round(
    number: int, seed: int, jobs: int, system: System, checks: Checks, tally: Tally
) -> None:
    rng = random.Random(f"{seed}-{number}")
    poison = POISONS[rng.randrange(2)] if number % _POISON_EVERY == 2 else None
    orders = draw(rng, round(jobs * rng.uniform(0.7, 1.3)), poison)
    plan = faults.draw(rng, rng.randrange(1, 4))
    since = new_job_id()
    started = time.monotonic()
    tally.rounds.append(Round(number, plan, Counter(), 0.0))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(faults.inflict(system, plan, tally.faults))
            for order in orders:
                group.create_task(checks.client.serve(order))
        await _settle(system, checks, since)
        records = await checks.round(orders, since)
    except* Violation as group_of:
        raise _first(group_of) from None
    by_token = {record.token: record for record in records}
    current = tally.rounds[-1]
    current.outcomes.update(outcome(order, by_token.get(order.token)) for order in orders)
    current.seconds = time.monotonic() - started
    tally.jobs += len(records)
    tally.attempts.update(record.attempt for record in records)


def _first(group: BaseExceptionGroup[Violation]) -> Violation:
    while True:
        error = group.exceptions[0]
        if isinstance(error, Violation):
            return error
        assert isinstance(error, BaseExceptionGroup)
        group = error


async def _settle(system: System, checks: Checks, since: str) -> None:
    """Wait until all parts are up and all jobs of the round final."""
    deadline = time.monotonic() + _SETTLE_S
    try:
        await system.ready(_SETTLE_S)
    except TimeoutError:
        raise Violation(f"not every part is ready after {_SETTLE_S:g} s") from None
    while open_jobs := [
        job["id"] for job in await checks.client.listing(since) if job["state"] not in FINAL
    ]:
        if time.monotonic() > deadline:
            raise Violation(f"not settled: {open_jobs}", job=open_jobs[0])
        await asyncio.sleep(0.2)


async def _clear(system: System, checks: Checks) -> None:
    """When the last result has expired, janitors have removed every file, strays included."""
    settings = system.settings
    # All jobs are final, so whatever belongs to none of them is an orphan, however young.
    jobs = JobSettings(queue_ttl_s=0, run_timeout_s=0, result_ttl_s=0)
    deadline = time.monotonic() + settings.jobs.result_ttl_s + _SETTLE_S
    async with Queue(settings.redis, settings.jobs) as queue:
        while True:
            await checks.redis.delete(f"{checks.root}:janitor:storage")
            await Janitor(queue, Store(settings), jobs).sweep()
            files = checks.files() + [str(path) for path in system.temporary.iterdir()]
            if not files:
                return
            if time.monotonic() > deadline:
                raise Violation(f"{len(files)} files are left for good: {files[:20]}")
            await asyncio.sleep(0.5)


async def report(violation: Violation, tally: Tally, system: System, checks: Checks) -> str:
    """Return all that is known about a violation."""
    current = tally.rounds[-1]
    lines = [
        f"VIOLATION: {violation}",
        f"seed {tally.seed}, round {current.number}; logs: {system.data / 'logs'}",
        "faults: " + "; ".join(map(str, current.faults)),
        "supervisor: " + "; ".join(f"{part} {event}" for part, event in system.events[-30:]),
    ]
    order, job = violation.order, violation.job
    if order is not None:
        lines += [f"order {order.kind}, token {order.token}, key {order.key}", *order.history]
    if job is not None:
        try:
            lines += _history(await checks.record(job))
        except Violation as gone:
            lines.append(str(gone))
        lines += _logged(system.data / "logs", job)
    return "\n".join(lines)


def _history(record: Record) -> list[str]:
    lines = [f"job {record.id}: {record.state} {record.error}, attempt {record.attempt}"]
    for event_id, kind, data in record.events:
        when = datetime.fromtimestamp(int(event_id.partition("-")[0]) / 1000)
        lines.append(f"  {when:%H:%M:%S.%f} {kind} {data}")
    return lines


def _logged(logs: Path, job: str) -> list[str]:
    return [
        f"  {log.stem}: {line}"
        for log in sorted(logs.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()
        if job in line
    ][:60]
