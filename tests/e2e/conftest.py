"""One real `vitrine up` for all end-to-end tests: Redis, Triton with the shipped models, worker, gateway."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.cli.running import Up, alive
from tests.e2e.service import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service; at the end SIGTERM must stop it without leaving a process."""
    up = Up.start(tmp_path_factory.mktemp("up") / "data", "--device", "cpu")
    with httpx2.Client(base_url=up.url, timeout=60, trust_env=False) as client:
        yield Service(up.url, up.data_dir, client)
    family = up.family()
    assert up.stop() == 0, up.text()
    assert not alive(family)
