"""Load shedding by its own rules, on a clock of the test's own."""

from __future__ import annotations

import heapq
import random
from collections import deque

import numpy as np
import pytest

from service.errors import Overloaded
from service.http.shedding import ModelLoad
from service.settings import SheddingSettings

DEADLINE_S = 60.0


class Server:
    """One server that takes `service_s` for each request, behind `ModelLoad`; simulated."""

    def __init__(self, service_s: float = 0.02, **settings: float) -> None:
        self.now = 0.0
        self.service_s = service_s
        self.load = ModelLoad("m", SheddingSettings(**settings), lambda: self.now)
        self.latencies: list[float] = []
        self.refused: list[Overloaded] = []
        self._queue: deque[tuple[float, tuple[float, bool]]] = deque()
        self._free_at = 0.0

    def offer(self, rate: float, seconds: float, seed: int = 1) -> None:
        """Let requests come in at random for `seconds`, `rate` a second on average."""
        draw = random.Random(seed)
        arrivals, until = [], self.now + seconds
        at = self.now
        while (at := at + draw.expovariate(rate)) < until:
            heapq.heappush(arrivals, at)
        while arrivals:
            self._finish(arrivals[0])
            self.arrive(heapq.heappop(arrivals))
        self._finish(until)
        self.now = until

    def arrive(self, at: float, deadline_s: float = DEADLINE_S) -> None:
        self.now = at
        try:
            entered = self.load.enter(deadline_s)
        except Overloaded as error:
            self.refused.append(error)
            return
        self._free_at = max(self._free_at, at) + self.service_s
        self._queue.append((self._free_at, entered))

    def _finish(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, entered = self._queue.popleft()
            self.load.leave(entered)
            self.latencies.append(self.now - entered[0])

    def p99(self) -> float:
        return float(np.percentile(self.latencies, 99))

    def forget(self) -> None:
        self.latencies.clear()
        self.refused.clear()


def test_below_the_capacity_nothing_is_refused() -> None:
    server = Server()
    server.offer(rate=35, seconds=120)
    assert not server.refused


def test_above_it_latency_stays_and_throughput_too() -> None:
    server = Server()
    server.offer(rate=40, seconds=60)
    normal = server.p99()
    server.offer(rate=100, seconds=5)  # the queue forms, and is noticed
    server.forget()
    server.offer(rate=100, seconds=60)
    assert server.p99() < 2 * normal
    assert len(server.latencies) / 60 > 0.97 / server.service_s


def test_without_it_latency_grows() -> None:
    server = Server(enabled=False)
    server.offer(rate=100, seconds=30)
    assert server.p99() > 10
    assert not server.refused


def test_an_overload_from_the_first_request_on_is_bounded() -> None:
    server = Server()
    server.offer(rate=100, seconds=5)
    server.forget()
    server.offer(rate=100, seconds=20)
    assert server.p99() <= 11 * server.service_s


def test_a_burst_is_let_in() -> None:
    server = Server()
    server.offer(rate=20, seconds=30)
    server._finish(server.now + 1)
    for _ in range(100):
        server.arrive(server.now)
    assert not server.refused


def test_it_recovers_once_the_load_is_gone() -> None:
    server = Server()
    server.offer(rate=40, seconds=30)
    server.offer(rate=200, seconds=10)
    assert server.refused
    server.offer(rate=10, seconds=5)
    server.forget()
    server.offer(rate=40, seconds=30)
    assert not server.refused


def test_who_would_miss_the_deadline_is_refused_and_told_when_to_try_again() -> None:
    server = Server(service_s=1.0)
    server.offer(rate=0.5, seconds=60)
    server._finish(server.now + 30)
    server.now += 30
    for _ in range(10):
        server.arrive(server.now, deadline_s=4.0)
    # Each takes a second, so four end within four; three by an estimate a little above a second.
    assert len(server.refused) in (6, 7)
    refused = server.refused[0]
    assert "deadline" in refused.message
    assert refused.status == 503
    assert 1 <= int(refused.headers()["Retry-After"]) <= 4


def test_the_number_under_way_is_bounded() -> None:
    server = Server(max_under_way=3)
    for _ in range(5):
        server.arrive(0.0)
    assert len(server.refused) == 2
    assert "max_under_way" in server.refused[0].message


@pytest.mark.parametrize("service_s", [0.002, 5.0])
def test_fast_and_slow_models_are_treated_alike(service_s: float) -> None:
    server = Server(service_s)
    server.offer(rate=0.8 / service_s, seconds=3000 * service_s)
    normal = server.p99()
    assert len(server.refused) < 0.01 * len(server.latencies)
    server.offer(rate=2 / service_s, seconds=max(5.0, 300 * service_s))
    server.forget()
    server.offer(rate=2 / service_s, seconds=3000 * service_s)
    assert server.p99() < 2 * normal
