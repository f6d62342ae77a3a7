"""Load shedding: a request that could not be answered in time is refused before any work is done for it.

Above its capacity a model would answer ever later and, in the end, nobody in time. So each gateway
knows for each model how many requests are under way, how fast they end and how long one normally
takes, and from that what a further one can expect. It is refused, with the time after which
it is worth trying again,

  * when it could not end before its deadline;
  * when there is a standing queue: the number under way has not come down to the normal one for
    `patience_s`, or three times the normal time where that is longer. A burst is let in and works
    itself off; a load that stays above the capacity is not.

The normal number follows from Little's law, rate x normal time. The normal time is what nearly all
requests take while there is no standing queue (mean and four mean deviations, as in RFC 6298), at
least 4 and at most 10 times the shortest: with one server and regular work, 99 % of requests end
within 10 service times at a load of 80 %.

A gateway sees its own requests only. Several of them share a model's rate, and so their estimates
agree with what each of them can expect.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Overloaded
from service.observability.metrics import Metrics
from service.settings import SheddingSettings
from service.triton.call import Call

# Over how many requests the rate is remembered, and after how many it is believed.
_MEMORY = 100
_BELIEVED = 4
_FEWEST = 4


class Shedding:
    """What is under way in this gateway, by model."""

    def __init__(self, settings: SheddingSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._models: dict[str, ModelLoad] = {}

    @contextmanager
    def admit(self, model: str, call: Call) -> Iterator[None]:
        """Do a request's work in this block. Raises Overloaded."""
        load = self._models.get(model)
        if load is None:
            load = self._models[model] = ModelLoad(model, self._settings)
        try:
            started = load.enter(call.remaining_s)
        except Overloaded:
            self._metrics.shed.labels(model).inc()
            raise
        gauge = self._metrics.model_requests.labels(model)
        gauge.inc()
        done = False
        try:
            yield
            done = True
        finally:
            gauge.dec()
            load.leave(started if done else None)


class ModelLoad:
    """One model: what is under way, how fast it goes, and what is normal."""

    def __init__(
        self,
        model: str,
        settings: SheddingSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._settings = settings
        self._clock = clock
        self.under_way = 0
        self._looked_at = clock()
        self._busy_s = 0.0
        self._ended = 0.0
        self._shortest_s = 0.0
        self._mean_s = 0.0
        self._deviation_s = 0.0
        self._calm_at = clock()
        self._refused_at = float("-inf")
        self._standing = False

    @property
    def rate(self) -> float:
        """Requests that end in a second while there are some; 0 if that is not known yet."""
        return self._ended / self._busy_s if self._ended >= _BELIEVED and self._busy_s else 0.0

    @property
    def normal(self) -> int:
        """How many requests are under way when nearly all take no longer than usual."""
        return max(_FEWEST, math.ceil(self.rate * self._usual_s))

    @property
    def _patience_s(self) -> float:
        return max(self._settings.patience_s, 3 * self._usual_s)

    @property
    def _usual_s(self) -> float:
        high = self._mean_s + 4 * self._deviation_s
        return min(max(high, 4 * self._shortest_s), 10 * self._shortest_s)

    def enter(self, remaining_s: float) -> tuple[float, bool]:
        """Count a request in, and return what `leave` wants back. Raises Overloaded."""
        now = self._advance()
        if self._settings.enabled:
            self._judge(now, remaining_s)
        # What entered a queue is no measure of what is normal.
        usual = self.under_way < self.normal and not self._standing
        self.under_way += 1
        return now, usual

    def leave(self, entered: tuple[float, bool] | None) -> None:
        """Count a request out; `entered` is None if it was not finished and tells nothing."""
        now = self._advance()
        self.under_way -= 1
        if entered is None:
            return
        kept = 1 - 1 / _MEMORY
        self._ended, self._busy_s = self._ended * kept + 1, self._busy_s * kept
        since, usual = entered
        if usual:
            self._learn(now - since)

    def _advance(self) -> float:
        """Count the time during which there was work, and look whether a queue has gone."""
        now = self._clock()
        normal = self.normal
        if self.under_way:
            self._busy_s += now - self._looked_at
        self._looked_at = now
        if self.under_way <= normal:
            self._calm_at = now
        if self.under_way <= normal / 2 and now - self._refused_at > self._patience_s:
            self._standing = False
        return now

    def _judge(self, now: float, remaining_s: float) -> None:
        normal, settings = self.normal, self._settings
        if self.under_way >= normal and now - self._calm_at > self._patience_s:
            self._standing = True
        if self.under_way >= settings.max_under_way:
            reason = f"{settings.max_under_way} are under way (limit max_under_way)"
        elif self._standing and self.under_way >= normal:
            reason = f"{self.under_way} are under way, more than it can keep up with"
        elif self.rate and (self.under_way + 1) / self.rate > remaining_s:
            reason = f"{self.under_way} are under way, so this one would miss its deadline"
        else:
            return
        self._refused_at = now
        surplus = self.under_way - normal / 2
        raise Overloaded(
            f"Model {self._model!r} has too many requests: {reason}.",
            retry_after=max(1.0, surplus / self.rate) if self.rate else 1.0,
        )

    def _learn(self, seconds: float) -> None:
        """Take how long a normal request took."""
        if not self._shortest_s:
            self._shortest_s = self._mean_s = seconds
            return
        # The shortest creeps up, so that a slower machine or a larger input is learnt, too.
        self._shortest_s = min(seconds, self._shortest_s + (seconds - self._shortest_s) / 4000)
        self._deviation_s += (abs(seconds - self._mean_s) - self._deviation_s) / 16
        self._mean_s += (seconds - self._mean_s) / 32
