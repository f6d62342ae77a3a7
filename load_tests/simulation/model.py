"""The queue, its pods and its scaler as a discrete-event simulation; and what theory says of simple ones."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

HOUR_S = 3600.0

Rate = Callable[[float], float]
Events = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Service:
    """How long a job runs: log-normal with this mean and coefficient of variation; 1 and
    `exponential` for the theory's own distribution."""

    mean_s: float
    variation: float = 0.5
    exponential: bool = False

    def draw(self, random: np.random.Generator) -> float:
        if self.exponential:
            return float(random.exponential(self.mean_s))
        sigma2 = math.log(1 + self.variation**2)
        return float(random.lognormal(math.log(self.mean_s) - sigma2 / 2, math.sqrt(sigma2)))


@dataclass(frozen=True)
class Scaler:
    """When and how far pods are added and taken away; the fields follow KEDA's and the HPA's.

    Wanted are ceil(demand / slots) pods, within `least` and `most`. Up: at most by `up_percent` or
    `up_pods` of what there is in each `up_period_s`, whichever is more. Down: to the most that was
    wanted within `stabilization_s`, at most by `down_percent` in each `down_period_s`; the last one
    goes when nothing was wanted for `cooldown_s`. A pod serves `start_s` after it was asked for.
    """

    least: int
    most: int
    slots: int = 4
    polling_s: float = 15.0
    start_s: float = 20.0
    up_percent: float = 200.0
    up_pods: int = 5
    up_period_s: float = 30.0
    stabilization_s: float = 300.0
    down_percent: float = 25.0
    down_period_s: float = 60.0
    cooldown_s: float = 300.0


@dataclass
class Record:
    """What happened: a wait a job; samples of time, jobs waiting, slots busy, pods ready, pods paid for."""

    arrivals: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    samples: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    pod_seconds: float = 0.0


class Simulation:
    """One queue, its pods and its scaler."""

    def __init__(
        self, rate: Rate, peak: float, service: Service, scaler: Scaler, seed: int
    ) -> None:
        """`rate` gives jobs/s at a time in s and is never above `peak`."""
        self._environment = simpy.Environment()
        self._random = np.random.default_rng(seed)
        self._rate, self._peak = rate, peak
        self._service, self._scaler = service, scaler
        self._waiting: deque[tuple[float, int]] = deque()
        self._busy = 0
        # Begin as if the first load had lasted: what starts from nothing is not what is asked.
        first = math.ceil(rate(0.0) * service.mean_s / scaler.slots)
        self._ready = min(max(first, scaler.least), scaler.most)
        self._starting = 0
        # Pods that are asked to go finish what they run and take nothing new.
        self._wanted_history: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()
        self._active_at = 0.0
        self._paid_since = 0.0
        self._record = Record()

    def run(self, until_s: float) -> Record:
        environment = self._environment
        environment.process(self._arrive())
        environment.process(self._scale())
        environment.process(self._watch())
        environment.run(until=until_s)
        self._pay()
        return self._record

    @property
    def _pods(self) -> int:
        return self._ready + self._starting

    def _arrive(self) -> Events:
        """Thin a Poisson process of the peak's rate to the rate of the moment."""
        while True:
            yield self._environment.timeout(self._random.exponential(1 / self._peak))
            if self._random.random() * self._peak < self._rate(self._environment.now):
                self._record.arrivals.append(self._environment.now)
                self._record.waits.append(math.nan)
                self._waiting.append((self._environment.now, len(self._record.waits) - 1))
                self._start_jobs()

    def _start_jobs(self) -> None:
        while self._waiting and self._busy < self._ready * self._scaler.slots:
            submitted, index = self._waiting.popleft()
            self._record.waits[index] = self._environment.now - submitted
            self._busy += 1
            self._environment.process(self._work())

    def _work(self) -> Events:
        yield self._environment.timeout(self._service.draw(self._random))
        self._busy -= 1
        self._start_jobs()

    def _scale(self) -> Events:
        while True:
            yield self._environment.timeout(self._scaler.polling_s)
            target = self._target()
            if target > self._pods:
                self._change(target - self._pods)
                for _ in range(target - self._pods):
                    self._starting += 1
                    self._environment.process(self._start_pod())
            elif target < self._ready:
                self._change(target - self._ready)
                self._ready = target

    def _start_pod(self) -> Events:
        yield self._environment.timeout(self._scaler.start_s)
        self._pay()
        self._starting -= 1
        self._ready += 1
        self._start_jobs()

    def _target(self) -> int:
        """Return the number of pods that the scaler asks for now."""
        scaler, now = self._scaler, self._environment.now
        demand = len(self._waiting) + self._busy
        if demand:
            self._active_at = now
        elif not self._pods:
            return 0
        wanted = min(max(math.ceil(demand / scaler.slots), scaler.least, 1), scaler.most)
        history = self._wanted_history
        history.append((now, wanted))
        while history[0][0] < now - scaler.stabilization_s:
            history.popleft()
        if wanted > self._pods:
            before = self._pods - self._changed(scaler.up_period_s, up=True)
            most = max(before * (1 + scaler.up_percent / 100), before + scaler.up_pods)
            return max(self._pods, min(wanted, math.floor(most)))
        wanted = max(each for _, each in history)
        if wanted < self._ready:
            before = self._ready - self._changed(scaler.down_period_s, up=False)
            least = math.floor(before * (1 - scaler.down_percent / 100))
            return min(self._ready, max(wanted, least))
        idle = now - self._active_at >= scaler.cooldown_s
        return 0 if idle and scaler.least == 0 and not self._starting else self._pods

    def _changed(self, period_s: float, *, up: bool) -> int:
        since = self._environment.now - period_s
        while self._changes and self._changes[0][0] <= self._environment.now - 3600:
            self._changes.popleft()
        return sum(n for at, n in self._changes if at > since and (n > 0) == up)

    def _change(self, pods: int) -> None:
        self._pay()
        self._changes.append((self._environment.now, pods))

    def _pay(self) -> None:
        """Count the pods up to now: those that serve, start, or finish what they run."""
        finishing = max(0, math.ceil(self._busy / self._scaler.slots) - self._ready)
        paid = self._pods + finishing
        self._record.pod_seconds += paid * (self._environment.now - self._paid_since)
        self._paid_since = self._environment.now

    def _watch(self) -> Events:
        while True:
            sample = (len(self._waiting), self._busy, self._ready, self._pods)
            self._record.samples.append((self._environment.now, *sample))
            yield self._environment.timeout(10.0)


def erlang_c(servers: int, load: float) -> float:
    """Return the probability of waiting in M/M/c at `load` = arrival rate x mean service time < c."""
    inverse = 1.0  # of Erlang's B formula, by its recursion
    for c in range(1, servers + 1):
        inverse = 1.0 + inverse * c / load
    blocked = 1.0 / inverse
    return blocked / (1.0 - load / servers * (1.0 - blocked))
