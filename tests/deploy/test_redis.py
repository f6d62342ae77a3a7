"""Redis runs with the same promises wherever this repository starts one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from redis import Redis

from service.supervisor.embedded import redis_command
from tests.deploy.kubernetes import ROOT, sources
from tests.jobs.redis_server import RedisServer

# What jobs need (docs/kubernetes.md says the same of a Redis elsewhere), and what their memory depends on.
_PROMISES = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "stream-node-max-bytes": "512",
}


def options(words: Sequence[str]) -> Mapping[str, str]:
    return {
        name.removeprefix("--"): value for name, value in pairwise(words) if name.startswith("--")
    }


@pytest.mark.parametrize("where", ["vitrine up", "compose", "kubernetes"])
def test_the_same_options_everywhere(where: str, tmp_path: Path) -> None:
    words: Sequence[str]
    if where == "vitrine up":
        words = redis_command(tmp_path, 6379)
    elif where == "compose":
        document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        words = document["services"]["redis"]["command"]
    else:
        words = sources().container("redis").words
    assert options(words).items() >= _PROMISES.items()
    guide = (ROOT / "docs/kubernetes.md").read_text()
    assert all(f"`{name} {value}`" in guide for name, value in _PROMISES.items())


def test_a_short_stream_takes_a_fraction_of_a_page(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    try:
        with Redis.from_url(server.url) as client:
            sizes = []
            for name in ("4096", _PROMISES["stream-node-max-bytes"]):
                client.config_set("stream-node-max-bytes", name)
                client.xadd(f"events:{name}", {"kind": "state", "data": '{"state":"running"}'})
                client.xadd(f"events:{name}", {"kind": "state", "data": '{"state":"succeeded"}'})
                sizes.append(client.memory_usage(f"events:{name}"))
    finally:
        server.kill()
    assert sizes[1] < sizes[0] / 3
