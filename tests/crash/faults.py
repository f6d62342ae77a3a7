"""What is done to the system: a plan drawn from the seed, carried out beside the clients."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import Counter
from dataclasses import dataclass

import psutil

from tests.crash.system import GATEWAYS, ORDER, WORKERS, System

WINDOW_S = 2.5
_PARTS = {"worker": 8, "gateway": 6, "redis": 4, "triton": 2, "model": 1}
_KINDS = {"kill": 4, "pause": 3, "restart": 2}
# A model's process does not end by SIGTERM in a way of its own.
POSSIBLE = {(kind, part) for kind in _KINDS for part in _PARTS} - {("restart", "model")}
"""What may be done to what."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing done to one part: `kill` (SIGKILL), `restart` (SIGTERM) or `pause` (SIGSTOP for `for_s`)."""

    at_s: float
    part: str
    kind: str
    for_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.kind} {self.part}{lasting} at {self.at_s:.1f} s"


def draw(rng: random.Random, count: int) -> list[Fault]:
    """Return `count` faults in the order of their times."""
    found = []
    for _ in range(count):
        family = rng.choices(list(_PARTS), list(_PARTS.values()))[0]
        part = {"worker": rng.choice(WORKERS), "gateway": rng.choice(GATEWAYS)}.get(family, family)
        kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        if (kind, family) not in POSSIBLE:
            kind = "kill"
        # From a blink to beyond the lease and beyond the time-outs of clients of Redis.
        for_s = rng.choice((0.2, 0.8, 2.2)) if kind == "pause" else 0.0
        found.append(Fault(rng.uniform(0.1, WINDOW_S), part, kind, for_s))
    return sorted(found, key=lambda fault: fault.at_s)


async def inflict(system: System, faults: list[Fault], counts: Counter[str]) -> None:
    """Carry out the plan; every part that was paused goes on at the end."""
    started = asyncio.get_running_loop().time()

    async def one(fault: Fault) -> None:
        await asyncio.sleep(max(0.0, started + fault.at_s - asyncio.get_running_loop().time()))
        number = {
            "kill": signal.SIGKILL,
            "restart": signal.SIGTERM,
            "pause": signal.SIGSTOP,
        }[fault.kind]
        if _send(system, fault.part, number):
            counts[f"{fault.kind} {fault.part.partition('-')[0]}"] += 1
        if fault.kind == "pause":
            await asyncio.sleep(fault.for_s)
            _send(system, fault.part, signal.SIGCONT)

    try:
        await asyncio.gather(*map(one, faults))
    finally:
        for part in (*ORDER, "model"):
            _send(system, part, signal.SIGCONT)


def _send(system: System, part: str, number: signal.Signals) -> bool:
    if part != "model":
        return system.send(part, number)
    found = False
    for stub in system.stubs():
        with contextlib.suppress(psutil.Error):
            if any(word.endswith("imprint/1/model.py") for word in stub.cmdline()):
                stub.send_signal(number)
                found = True
    return found
