"""`python -m tests.crash.worker`: the worker with one task more."""

from __future__ import annotations

from service.jobs import worker
from service.tasks import PIPELINES
from tests.crash.tasks import Carry

if __name__ == "__main__":
    PIPELINES[Carry.name] = Carry()
    worker.main()
