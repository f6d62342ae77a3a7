"""The simulator against queueing theory, and its scaler against its own rules."""

from __future__ import annotations

import math

import numpy as np
import pytest

from load_tests.simulation.model import Record, Scaler, Service, Simulation, erlang_c
from load_tests.simulation.scenarios import daily, scenarios, simulate, spike

_HOUR_S = 3600.0
_SECOND = Service(mean_s=1.0, exponential=True)


def fixed(servers: int) -> Scaler:
    return Scaler(least=servers, most=servers, slots=1)


def waits(record: Record) -> np.ndarray:
    found = np.array(record.waits)
    return found[~np.isnan(found)]


def test_erlang_c_of_textbooks() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)  # M/M/1: the server is busy
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10, 8.0) == pytest.approx(0.4092, abs=1e-4)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.6), (4, 3.0), (20, 17.0)])
def test_waits_of_m_m_c(servers: int, load: float) -> None:
    """P(wait > 0) and the mean wait are Erlang's, and so is the tail: P(wait > t) = C e^-(c-a)t."""
    jobs = 150_000
    record = Simulation(lambda t: load, load, _SECOND, fixed(servers), seed=3).run(jobs / load)
    found = waits(record)
    assert len(found) == pytest.approx(jobs, rel=0.02)
    expected = erlang_c(servers, load)
    assert (found > 0).mean() == pytest.approx(expected, rel=0.04)
    assert found.mean() == pytest.approx(expected / (servers - load), rel=0.08)
    at = 1 / (servers - load)
    assert (found > at).mean() == pytest.approx(expected / math.e, rel=0.08)


def test_waits_of_m_g_1() -> None:
    """One server, log-normal service: Pollaczek and Khinchine."""
    load, variation = 0.7, 0.8
    service = Service(mean_s=1.0, variation=variation)
    record = Simulation(lambda t: load, load, service, fixed(1), seed=5).run(200_000 / load)
    expected = load * (1 + variation**2) / (2 * (1 - load))
    assert waits(record).mean() == pytest.approx(expected, rel=0.06)


def test_arrivals_follow_the_curve() -> None:
    rate = daily(0.5, 4.0)
    assert rate(4 * _HOUR_S) == pytest.approx(0.5)
    assert rate(16 * _HOUR_S) == pytest.approx(4.0)
    record = Simulation(rate, 4.0, Service(1.0), fixed(20), seed=1).run(24 * _HOUR_S)
    per_hour, _ = np.histogram(record.arrivals, bins=24, range=(0, 24 * _HOUR_S))
    expected = np.array([rate((h + 0.5) * _HOUR_S) * _HOUR_S for h in range(24)])
    assert (np.abs(per_hour - expected) < 5 * np.sqrt(expected)).all()


def test_the_same_seed_gives_the_same_figures() -> None:
    scenario = next(s for s in scenarios() if s.name == "zero")
    first, again, other = (simulate(scenario, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_is_at_zero_wakes_for_a_job_and_sleeps_after_it() -> None:
    scaler = Scaler(least=0, most=3, start_s=100.0, polling_s=15.0, cooldown_s=300.0)
    rate = spike(0.0, 0.05, 1000.0, 1400.0)
    # Long enough that the scaler, which looks every 15 s, sees them all.
    service = Service(60.0, variation=0.1)
    record = Simulation(rate, 0.05, service, scaler, seed=2).run(3000.0)
    first = record.arrivals[0]
    assert 100.0 <= record.waits[0] <= 115.0
    by_time = {t: paid for t, *_, paid in record.samples}
    assert all(paid == 0 for t, paid in by_time.items() if t < first)
    end = max(a + w for a, w in zip(record.arrivals, record.waits, strict=True))
    gone = min(t for t, paid in by_time.items() if t > end and paid == 0)
    assert gone - end >= 300.0
    assert by_time[2990.0] == 0
    assert gone - first < record.pod_seconds < 3 * (gone - first)


def test_pods_come_as_fast_as_allowed_and_go_no_sooner() -> None:
    scaler = Scaler(
        least=2,
        most=12,
        up_percent=100.0,
        up_pods=1,
        up_period_s=60.0,
        start_s=5.0,
        stabilization_s=300.0,
        down_percent=50.0,
        down_period_s=60.0,
    )
    end = 2000.0
    record = Simulation(spike(0.0, 14.0, 500.0, end), 14.0, Service(4.0), scaler, seed=1).run(
        4000.0
    )
    paid = [(t, pods) for t, *_, pods in record.samples]
    assert max(pods for _, pods in paid) == 12
    reached = {pods: next(t for t, n in paid if n >= pods) for pods in (4, 8, 12)}
    assert reached[4] <= 540.0
    assert reached[8] - reached[4] >= 45.0
    assert reached[12] - reached[8] >= 45.0
    # The line is long when the load ends: what is left is worked off before the five minutes begin.
    fewer = next(t for t, n in paid if t > end and n < 12)
    assert fewer - end >= 300.0
    assert paid[-1][1] == 2
    # No more than half go in a minute.
    for (t, many), (_, few) in zip(paid, paid[6:], strict=False):
        if t > end:
            assert few >= many // 2
