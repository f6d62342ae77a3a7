"""One real `vitrine up` for all end-to-end tests: Redis, Triton with the shipped models, worker, gateway.

It sends its traces to a collector in this process.
"""

from collections.abc import Iterator

import httpx2
import pytest

from tests.cli.running import Up, alive
from tests.e2e.service import Service
from tests.observability.collector import Collector, collecting


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Service]:
    """A running service; at the end SIGTERM must stop it without leaving a process."""
    up = Up.start(
        tmp_path_factory.mktemp("up") / "data",
        *("--device", "cpu"),
        VITRINE_TRACING__URL=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="500",
    )
    with httpx2.Client(base_url=up.url, timeout=60, trust_env=False) as client:
        yield Service(up.url, up.data_dir, client)
    family = up.family()
    assert up.stop() == 0, up.text()
    assert not alive(family)
