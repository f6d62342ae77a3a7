"""The loads and scalers that docs/scaling.md shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from load_tests.simulation.model import HOUR_S, Rate, Record, Scaler, Service, Simulation


@dataclass(frozen=True)
class Scenario:
    """A load, what serves it, and how it is scaled."""

    name: str
    about: str
    hours: float
    rate: Rate
    peak: float
    service: Service
    scaler: Scaler


def daily(low: float, high: float) -> Rate:
    """Return a day's curve in jobs/s: lowest at 4:00, highest at 16:00."""
    return lambda t: low + (high - low) * (0.5 - 0.5 * math.cos((t / HOUR_S - 4) / 24 * math.tau))


def spike(base: float, top: float, begin_s: float, end_s: float) -> Rate:
    """Return a rate that jumps from `base` to `top` jobs/s and back."""
    return lambda t: top if begin_s <= t < end_s else base


_JOB = Service(mean_s=8.0)
WORKERS = Scaler(least=2, most=50)
_GPUS = Scaler(
    least=1,
    most=16,
    slots=4,
    start_s=240.0,
    up_percent=100.0,
    up_pods=1,
    up_period_s=60.0,
    stabilization_s=900.0,
    down_percent=25.0,
    down_period_s=180.0,
    cooldown_s=900.0,
)


def scenarios() -> list[Scenario]:
    """Return what the page on scaling shows."""
    day, jump = daily(0.5, 12.0), spike(2.0, 15.0, 2 * HOUR_S, 2.5 * HOUR_S)
    rare = spike(0.0, 0.05, 2 * HOUR_S, 3 * HOUR_S)
    return [
        Scenario("day-scaled", "a day, pods start in 20 s", 24, day, 12, _JOB, WORKERS),
        Scenario(
            "day-fixed",
            "a day, 30 pods fixed",
            24,
            day,
            12,
            _JOB,
            replace(WORKERS, least=30, most=30),
        ),
        Scenario("spike-warm", "a spike of 7.5 x, pods start in 20 s", 5, jump, 15, _JOB, WORKERS),
        Scenario(
            "spike-gpu",
            "the spike, pods with a GPU start in 240 s",
            5,
            jump,
            15,
            _JOB,
            replace(_GPUS, least=5, most=40),
        ),
        Scenario(
            "spike-gpu-slack",
            "the spike, GPUs, 10 pods kept",
            5,
            jump,
            15,
            _JOB,
            replace(_GPUS, least=10, most=40),
        ),
        Scenario(
            "zero", "an hour's use, down to zero", 5, rare, 0.05, _JOB, replace(_GPUS, least=0)
        ),
    ]


def simulate(scenario: Scenario, seed: int) -> Record:
    """Run one scenario."""
    made = Simulation(scenario.rate, scenario.peak, scenario.service, scenario.scaler, seed)
    return made.run(scenario.hours * HOUR_S)
