"""How to treat a server that was found away: go on without it, and ask again once a second."""

from __future__ import annotations

import time

import structlog

_PERIOD_S = 1.0
_log = structlog.stdlib.get_logger("vitrine.limits")


class Outage:
    """Remembers that Redis did not answer, so that callers do not wait for it one after the other."""

    def __init__(self, consequence: str) -> None:
        self._consequence = consequence
        self._away = False
        self._ask_at = 0.0

    def ask(self) -> bool:
        """Whether to ask Redis: always while it answers, else for one caller a second."""
        if not self._away:
            return True
        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + _PERIOD_S
        return True

    def began(self, error: Exception) -> None:
        """Note that Redis did not answer."""
        self._ask_at = time.monotonic() + _PERIOD_S
        if not self._away:
            self._away = True
            _log.warning("Redis does not answer", consequence=self._consequence, error=str(error))

    def over(self) -> None:
        """Note that Redis answered."""
        if self._away:
            self._away = False
            _log.info("Redis answers again")
