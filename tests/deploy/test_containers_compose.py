"""docker-compose.yml: what it names exists in the settings, the images and the programs, and it hangs together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.images.build import version
from models.cli import app as models_app
from service.auth.exposure import key_required
from service.settings import Settings
from service.supervisor.parts import Addresses
from service.triton.server import EXIT_S
from tests.deploy.dockerfile import Stage, stages, variables

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
OURS = ("gateway", "worker", "triton-cpu", "triton-gpu", "triton-ready")
NAMES = ("redis", *OURS, "prometheus", "grafana")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
    return found


def plain(value: object) -> str:
    """Return a value as compose sees it when no variable is set."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", str(value))


def stage(service: dict[str, Any]) -> Stage:
    """Return the Dockerfile's stage from which a service of ours runs."""
    name = plain(service["image"]).split("/")[-1].split(":")[0]
    return stages()[name]


def environment(service: dict[str, Any]) -> dict[str, str]:
    own = {k: plain(v) for k, v in (service.get("environment") or {}).items() if v is not None}
    return {**variables(stage(service)), **own}


def test_the_services(services: dict[str, dict[str, Any]]) -> None:
    assert sorted(services) == sorted(NAMES)
    assert all(plain(s["image"]).count(":") == 1 for s in services.values())
    assert not [s["image"] for s in services.values() if "latest" in s["image"]]
    for name in OURS:
        assert f":{version()}" in plain(services[name]["image"])


def settings_named() -> Iterator[str]:
    document = yaml.safe_load(FILE.read_text())
    for name in OURS:
        yield from document["services"][name].get("environment") or ()
    for name in ("gateway", "worker", "triton"):
        yield from variables(stages()[name])


@pytest.mark.parametrize("name", sorted({n for n in settings_named() if n.startswith("VITRINE_")}))
def test_each_variable_is_a_setting(name: str) -> None:
    fields = Settings.model_fields
    *groups, last = name.removeprefix("VITRINE_").lower().split("__")
    for group in groups:
        fields = fields[group].annotation.model_fields
    assert last in fields


@pytest.mark.parametrize("name", OURS)
def test_settings_are_valid(
    name: str, services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment(services[name]).items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert str(settings.data_dir) == "/var/lib/vitrine"
    if name in ("gateway", "worker"):
        assert settings.redis.url == "redis://redis:6379/0"
        assert settings.triton.url == "triton:8001"
    if name == "gateway":
        assert settings.host == "0.0.0.0"
        # Ports are published to this machine alone; a key is asked for only when one was set up.
        assert not key_required(settings)
        monkeypatch.setenv("VITRINE_AUTH__REQUIRED", "true")
        assert key_required(Settings())
        assert settings.auth.open_metrics


def test_the_admin_key_is_passed_on(services: dict[str, dict[str, Any]]) -> None:
    assert services["gateway"]["environment"]["VITRINE_AUTH__ADMIN_KEY"] is None


def test_names_resolve(services: dict[str, dict[str, Any]]) -> None:
    hosts = {*services, "triton"}
    assert services["triton-cpu"]["networks"]["default"]["aliases"] == ["triton"]
    assert services["triton-gpu"]["networks"]["default"]["aliases"] == ["triton"]
    named = re.findall(r"(?:http|redis)://([a-z-]+):", FILE.read_text())
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    for job in scraped["scrape_configs"]:
        for static in job.get("static_configs", ()):
            named += [target.split(":")[0] for target in static["targets"]]
        for dns in job.get("dns_sd_configs", ()):
            named += dns["names"]
    assert {"redis", "triton", "gateway", "worker"} <= set(named) <= {*hosts, "localhost"}


def test_scraped_ports_are_those_of_the_images() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    ports = {}
    for job in scraped["scrape_configs"]:
        for static in job.get("static_configs", ()):
            ports[job["job_name"]] = int(static["targets"][0].split(":")[1])
        for dns in job.get("dns_sd_configs", ()):
            ports[job["job_name"]] = dns["port"]
    built = stages()
    assert ports["gateway"] == int(variables(built["gateway"])["VITRINE_PORT"])
    assert ports["worker"] == int(variables(built["worker"])["VITRINE_WORKER__METRICS_PORT"])
    assert str(ports["triton"]) in built["triton"].last("EXPOSE").split()


def test_mounted_files_exist(services: dict[str, dict[str, Any]]) -> None:
    mounted = [v.split(":")[0] for s in services.values() for v in s.get("volumes", ())]
    files = [path for path in mounted if path.startswith("./")]
    assert files
    assert [path for path in files if not (ROOT / path).exists()] == []
    declared = yaml.safe_load(FILE.read_text())["volumes"]
    assert {path for path in mounted if not path.startswith("./")} == set(declared)


@pytest.mark.parametrize("name", NAMES)
def test_every_service_is_hardened(name: str, services: dict[str, dict[str, Any]]) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["profiles"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert service["restart"] == ("no" if name == "triton-ready" else "unless-stopped")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    if name != "triton-ready":
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    for needed, condition in (service.get("depends_on") or {}).items():
        once = "service_completed_successfully" if needed == "triton-ready" else "service_healthy"
        assert condition == {"condition": once}


def test_redis_keeps_jobs(services: dict[str, dict[str, Any]]) -> None:
    words = services["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "jobs:/data" in services["redis"]["volumes"]
    assert services["redis"]["networks"] == ["inner"]


def test_stopping_takes_no_longer_than_compose_waits(services: dict[str, dict[str, Any]]) -> None:
    def grace(name: str) -> float:
        return float(services[name]["stop_grace_period"].removesuffix("s"))

    settings = Settings()
    assert grace("gateway") > settings.limits.drain_seconds + settings.limits.drain_delay_seconds
    assert grace("worker") > settings.jobs.drain_s
    assert grace("triton-cpu") == grace("triton-gpu") > EXIT_S


def test_health_is_asked_at_paths_that_exist(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.app import create_app

    paths = create_app(Settings()).openapi()["paths"]
    url = services["gateway"]["healthcheck"]["test"][-1]
    assert url.startswith(Addresses("127.0.0.1", 8000, "", "").url)
    assert url.removeprefix("http://127.0.0.1:8000") in paths
    for name in ("gateway", "worker", "triton-cpu", "triton-gpu"):
        test = services[name]["healthcheck"]["test"]
        assert test[:4] == ["CMD", "python", "-m", "service.observability.probe"]
        # The image's own check, or one at the same port.
        port = re.search(r":(\d+)/", test[4])
        assert port is not None
        assert port[1] in stage(services[name]).last("EXPOSE").split()


def test_triton_takes_the_device(services: dict[str, dict[str, Any]]) -> None:
    from typer.testing import CliRunner

    shown = CliRunner().invoke(models_app, ["serve", "--help"], env={"COLUMNS": "200"})
    assert "--device" in shown.output
    assert services["triton-cpu"]["command"] == ["--device=cpu"]
    assert services["triton-gpu"]["command"] == ["--device=cuda"]
    assert services["triton-cpu"]["profiles"] == ["cpu"]
    assert services["triton-gpu"]["profiles"] == ["gpu"]
    reserved = services["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


@pytest.mark.skipif(
    shutil.which("docker-compose") is None,
    reason="docker-compose is not installed (Debian: apt-get install docker-compose)",
)
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_docker_compose_accepts_it(profile: str) -> None:
    done = subprocess.run(
        ["docker-compose", "--file", FILE, "--profile", profile, "config"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    rendered = yaml.safe_load(done.stdout)["services"]
    assert sorted(rendered) == sorted(NAMES)
    assert "${" not in done.stdout
