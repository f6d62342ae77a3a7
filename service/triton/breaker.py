"""A circuit breaker for each model: one that keeps failing is left alone for a while.

    closed ──failures──▶ open ──pause over──▶ half-open ──trial succeeds──▶ closed
                          ▲                       │
                          └──────trial fails──────┘

While it is open, requests are answered at once instead of waiting for what will not come. When the
pause is over one request goes through as a trial; the others are still refused until it has ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from service.errors import DeadlineExceeded, ModelFailed, TritonUnavailable, VitrineError


class State(IntEnum):
    """The numbers are those of the metric `vitrine_breaker_state`."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


# It opens when, of the last `_LATEST` outcomes, at least `_FAILURES` and half are failures.
_LATEST = 20
_FAILURES = 5
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 5.0

# Who waits less than this and gets no answer may simply have been in a hurry.
_PATIENT_S = 5.0

# Passing states of a model that comes; a trial would not tell more.
_NO_FAULT = ("model_loading", "model_not_loaded")


class Breaker:
    """The breaker of one model. `observe` is told every change of its state."""

    def __init__(
        self,
        model: str,
        observe: Callable[[str, State], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.state = State.CLOSED
        self._observe = observe
        self._clock = clock
        self._outcomes: deque[bool] = deque(maxlen=_LATEST)
        self._pause_s = _FIRST_PAUSE_S
        self._until = 0.0
        self._on_trial = False

    @contextmanager
    def watch(self, seconds: float) -> Iterator[None]:
        """Let one request through that waits for `seconds`, and judge by how it ends.

        Faults of the server count, refusals of an input do not, and neither does a request that
        was cancelled or had little time. Raises TritonUnavailable (`model_unavailable`) while the breaker is open.
        """
        trial = self._enter()
        try:
            yield
        except DeadlineExceeded:
            self._ended(trial, ok=False if seconds >= _PATIENT_S else None)
            raise
        except VitrineError as error:
            self._ended(trial, ok=not is_fault(error))
            raise
        except BaseException:
            self._ended(trial, ok=None)
            raise
        else:
            self._ended(trial, ok=True)

    def _enter(self) -> bool:
        """Tell whether the request that enters is a trial."""
        if self.state is State.CLOSED:
            return False
        now = self._clock()
        if self.state is State.OPEN and now >= self._until:
            self._become(State.HALF_OPEN)
        if self.state is State.HALF_OPEN and not self._on_trial:
            self._on_trial = True
            return True
        raise TritonUnavailable(
            f"model {self.model!r} failed repeatedly and is left alone for a moment",
            code="model_unavailable",
            begun=False,
            retry_after=max(1.0, self._until - now),
        )

    def _ended(self, trial: bool, ok: bool | None) -> None:
        if trial:
            self._on_trial = False
            if ok is None:
                return
            if ok:
                self._outcomes.clear()
                self._pause_s = _FIRST_PAUSE_S
                self._become(State.CLOSED)
            else:
                self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
                self._open()
        elif ok is not None and self.state is State.CLOSED:
            self._outcomes.append(ok)
            failures = self._outcomes.count(False)
            if failures >= _FAILURES and 2 * failures >= len(self._outcomes):
                self._open()

    def _open(self) -> None:
        self._until = self._clock() + self._pause_s
        self._become(State.OPEN)

    def _become(self, state: State) -> None:
        self.state = state
        self._observe(self.model, state)


def is_fault(error: VitrineError) -> bool:
    """Tell whether an error is the server's: it did not answer, or failed within."""
    if isinstance(error, TritonUnavailable):
        return error.stable_code not in _NO_FAULT
    return isinstance(error, ModelFailed)
