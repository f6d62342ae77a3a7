"""The circuit breaker alone, on a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import BadInput, DeadlineExceeded, ModelFailed, TritonUnavailable, VitrineError
from service.triton.breaker import Breaker, State


class Bench:
    """A breaker, its clock and the states that it told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[State] = []
        self.breaker = Breaker("m", lambda _, state: self.told.append(state), lambda: self.now)

    def request(self, error: BaseException | None = None, seconds: float = 60.0) -> None:
        try:
            with self.breaker.watch(seconds):
                if error is not None:
                    raise error
        except (VitrineError, asyncio.CancelledError) as raised:
            if raised is not error:
                raise

    def open(self) -> None:
        for _ in range(5):
            self.request(ModelFailed("broken"))
        assert self.breaker.state is State.OPEN


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    "fault", [ModelFailed("x"), TritonUnavailable("x"), DeadlineExceeded("x", retry_after=2.0)]
)
def test_faults_open_it(bench: Bench, fault: VitrineError) -> None:
    for _ in range(5):
        bench.request(fault)
    with pytest.raises(TritonUnavailable) as refused:
        bench.request()
    assert refused.value.stable_code == "model_unavailable"
    assert refused.value.headers() == {"Retry-After": "1"}


@pytest.mark.parametrize(
    "harmless",
    [
        BadInput("x"),
        asyncio.CancelledError(),
        TritonUnavailable("x", code="model_loading"),
        TritonUnavailable("x", code="model_not_loaded"),
    ],
)
def test_what_is_not_the_servers_fault_does_not(bench: Bench, harmless: BaseException) -> None:
    for _ in range(40):
        bench.request(harmless)
    assert bench.breaker.state is State.CLOSED


def test_a_caller_in_a_hurry_tells_nothing(bench: Bench) -> None:
    for _ in range(40):
        bench.request(DeadlineExceeded("x"), seconds=0.5)
    assert bench.breaker.state is State.CLOSED


def test_failures_among_many_successes_do_not(bench: Bench) -> None:
    for number in range(60):
        bench.request(ModelFailed("x") if number % 3 == 0 else None)
    assert bench.breaker.state is State.CLOSED


def test_one_trial_at_a_time_closes_it(bench: Bench) -> None:
    bench.open()
    bench.now += 1.0
    with bench.breaker.watch(60):
        assert bench.breaker.state is State.HALF_OPEN
        with pytest.raises(TritonUnavailable):
            bench.request()
    assert bench.told == [State.OPEN, State.HALF_OPEN, State.CLOSED]
    bench.request(ModelFailed("x"))
    assert bench.breaker.state is State.CLOSED


def test_a_failed_trial_lengthens_the_pause_up_to_a_bound(bench: Bench) -> None:
    bench.open()
    pauses = []
    for _ in range(5):
        since = bench.now
        while True:
            bench.now += 0.25
            try:
                bench.request(ModelFailed("again"))
            except TritonUnavailable:
                continue
            break
        pauses.append(bench.now - since)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_cancelled_trial_leaves_room_for_the_next(bench: Bench) -> None:
    bench.open()
    bench.now += 1.0
    bench.request(asyncio.CancelledError())
    assert bench.breaker.state is State.HALF_OPEN
    bench.request()
    assert bench.breaker.state is State.CLOSED
