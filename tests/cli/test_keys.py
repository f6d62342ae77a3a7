"""`vitrine keys` on a data directory, and a gateway that other machines could reach."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import Result
from typer.testing import CliRunner

from service.auth.keys import key_id_of
from service.cli.main import app
from service.client import ApiError, Client
from tests.cli.running import run_vitrine
from tests.jobs.redis_server import RedisServer, free_port


def keys(*arguments: str, data_dir: Path) -> Any:
    return CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(data_dir)])


def listed(data_dir: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        keys("list", "--json", *arguments, data_dir=data_dir).stdout
    )
    return found


def test_keys_are_made_listed_and_revoked_while_nothing_runs(tmp_path: Path) -> None:
    limits = "--rate 60/min --burst 10 --concurrency 4 --queued-jobs 100 --body 10MB"
    made = keys("create", "phone", *limits.split(), "--expires", "30d", data_dir=tmp_path)
    assert made.exit_code == 0, made.output
    presented = made.stdout.removesuffix("\n")
    assert key_id_of(presented) is not None
    assert "shown this once" in made.stderr
    admin = json.loads(
        keys("create", "ops", "--scope", "admin", "--json", data_dir=tmp_path).stdout
    )
    assert (admin["scopes"], admin["limits"]["rate"]) == (["admin"], None)
    assert admin["key"].startswith(f"vt_{admin['id']}_")

    phone, ops = listed(tmp_path)
    assert (phone["id"], phone["name"], phone["scopes"]) == (
        key_id_of(presented),
        "phone",
        ["infer", "jobs"],
    )
    assert phone["limits"] == {
        "rate": {"requests": 60, "seconds": 60, "burst": 10},
        "concurrency": 4,
        "queued_jobs": 100,
        "body_bytes": 10_000_000,
    }
    assert abs(phone["expires_at"] - time.time() - 30 * 86400) < 600
    assert ops["expires_at"] is None
    assert not {"digest", "key"} & (set(phone) | set(ops))

    twice = keys("create", "phone", data_dir=tmp_path)
    assert twice.exit_code == 1
    assert "named 'phone' already" in twice.stderr

    assert keys("revoke", "phone", data_dir=tmp_path).stdout == (
        "'phone' is revoked; gateways refuse it within 5 s.\n"
    )
    assert keys("revoke", ops["id"], data_dir=tmp_path).exit_code == 0
    unknown = keys("revoke", "phone", data_dir=tmp_path)
    assert unknown.exit_code == 1
    assert "no key 'phone'" in unknown.stderr
    assert listed(tmp_path) == []
    assert [key["name"] for key in listed(tmp_path, "--all")] == ["phone", "ops"]
    assert not any(b"vt_" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "redis"]

    refused = run_vitrine("up", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert "0.0.0.0 is reached from other machines" in refused.stderr
    assert "vitrine keys create NAME" in refused.stderr
    assert "--no-auth" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "--rate", "60/day"), "'60/day' is no rate"),
        (("x", "--burst", "5"), "a burst needs a rate"),
        (("x", "--body", "much"), "'much' is no size"),
        (("x", "--body", "0MB"), "'0MB' is no size"),
        (("x", "--expires", "soon"), "neither like 30d nor like 2027-01-31"),
        (("x", "--expires", "2020-01-01"), "2020-01-01 is over"),
        (("x", "--scope", "root"), "--scope"),
        (("x" * 65,), "name"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done: Result = keys("create", *arguments, data_dir=tmp_path)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


@contextmanager
def gateway(redis: RedisServer, port: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m service.app` on all addresses."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service.app"],
        env=os.environ
        | {
            "VITRINE_HOST": "0.0.0.0",
            "VITRINE_PORT": str(port),
            "VITRINE_REDIS__URL": redis.url,
            "VITRINE_TRITON__URL": f"127.0.0.1:{free_port()}",
        }
        | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answers(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx2.get(f"{url}/livez", trust_env=False)
        except httpx2.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_a_gateway_for_others_asks_for_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("VITRINE_REDIS__URL", redis.url)
    try:
        with gateway(redis, port) as process:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 1
            assert "error: 0.0.0.0 is reached from other machines" in said
        with gateway(redis, port, VITRINE_AUTH__REQUIRED="false"):
            answers(url)
            with Client(url) as client:
                assert client.jobs()["data"] == []
        presented = CliRunner().invoke(app, ["keys", "create", "me"]).stdout.strip()
        with gateway(redis, port):
            answers(url)
            lacking = run_vitrine("jobs", "--url", url)
            assert lacking.returncode == 1
            assert "--api-key, or set VITRINE_API_KEY. [missing_key]" in lacking.stderr
            for arguments, environment in (
                (("jobs", "--url", url, "--api-key", presented), {}),
                (("jobs", "--url", url), {"VITRINE_API_KEY": presented}),
            ):
                done = run_vitrine(*arguments, **environment)
                assert done.stdout == "No jobs.\n", done.stderr
            show = ("show", "job_x")
            done = run_vitrine("jobs", "--api-key", presented, "--url", url, *show)
            assert "[job_not_found]" in done.stderr
            with Client(url, api_key=presented) as client:
                assert client.jobs()["data"] == []
                with pytest.raises(ApiError) as refusal:
                    client.load("a")
                assert (refusal.value.status, refusal.value.code) == (403, "insufficient_scope")
    finally:
        redis.kill()
