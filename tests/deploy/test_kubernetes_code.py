"""The Kubernetes manifests against the code: settings, commands, ports, probes, grace periods, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import yaml
from dockerfile_parse import DockerfileParser
from pydantic import BaseModel

from k8s import rules
from load_tests.simulation.scenarios import WORKERS
from models.repository import cards, write_catalogue
from models.weights.pull import published
from service.app import create_app
from service.jobs import endpoints
from service.settings import Settings
from service.supervisor import embedded
from service.supervisor.process import Process
from service.triton.cards import CATALOGUE
from service.triton.server import remove_shared_memory
from tests.deploy.kubernetes import K8S, OVERLAYS, ROOT, Container, Manifests, rendered, sources
from tests.triton.server import free_ports

_OPTION = re.compile(r"--[a-z0-9-]+")
# What Triton's manual lists for machines with GPUs; this one may have none.
_WITH_A_GPU = {"nv_gpu_utilization"}
_METRIC = re.compile(r"\b(?:vitrine|nv)_[a-z0-9_]+\b")


@pytest.fixture(scope="module", params=["files", *OVERLAYS, "variation"])
def manifests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Manifests:
    if request.param == "files":
        return sources()
    return rendered(request.param, tmp_path_factory.mktemp("variation"))


def settings_of(container: Container, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings that a container starts with; a Secret's value is one that fits."""
    secrets = {
        "VITRINE_AUTH__ADMIN_KEY": "k" * 64,
        "VITRINE_REDIS__URL": "rediss://:p@redis:6379/0",
    }
    for name in [name for name in os.environ if name.startswith("VITRINE_")]:
        monkeypatch.delenv(name)
    for name, value in container.env.items():
        if name.startswith("VITRINE_"):
            monkeypatch.setenv(
                name, secrets.get(name, "") if value.startswith("secret:") else value
            )
    return Settings()


def option(container: Container, name: str) -> str:
    (found,) = [word.partition("=")[2] for word in container.words if word.startswith(f"{name}=")]
    return found


def test_settings_exist(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    for container in manifests.containers:
        for name in container.env:
            if name.startswith("VITRINE_"):
                assert is_setting(name.removeprefix("VITRINE_").lower().split("__")), name
        settings_of(container, monkeypatch)


def is_setting(path: list[str]) -> bool:
    model: type[BaseModel] = Settings
    for level, name in enumerate(path):
        field = model.model_fields.get(name)
        if field is None:
            return False
        if level < len(path) - 1:
            assert isinstance(field.annotation, type)
            model = field.annotation
    return True


def test_gateways_are_reached_and_ask_for_keys(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = manifests.container("gateway")
    settings = settings_of(gateway, monkeypatch)
    assert settings.host == "0.0.0.0"
    assert settings.auth.required is None
    assert settings.auth.admin_key is not None
    assert settings.port == gateway.port("http")


def test_commands_are_those_of_the_images(manifests: Manifests) -> None:
    entry_points: dict[str, list[str]] = {}
    target = ""
    with (ROOT / "Dockerfile").open("rb") as file:
        lines = DockerfileParser(fileobj=file).structure
    for line in lines:
        if line["instruction"] == "FROM":
            target = line["value"].rpartition(" ")[2]
        if line["instruction"] == "ENTRYPOINT":
            entry_points[target] = yaml.safe_load(line["value"])
    for part in ("gateway", "worker"):
        command = manifests.container(part).words
        assert command == entry_points[part]
        assert importlib.util.find_spec(command[-1]) is not None
        assert hasattr(importlib.import_module(command[-1]), "main")


def test_the_gateway_answers_its_probes(manifests: Manifests) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    gateway = manifests.container("gateway").spec
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert gateway[probe]["httpGet"]["path"] in paths
    for part in ("readinessProbe", "livenessProbe"):
        assert gateway[part]["httpGet"]["path"] == "/livez", (
            "shared parts must not take all gateways out"
        )


def test_probes_ask_ports_that_are_open(manifests: Manifests) -> None:
    for container in manifests.containers:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.spec.get(probe, {})
            for way in ("httpGet", "tcpSocket"):
                if way in asked:
                    assert container.port(asked[way]["port"])


def test_the_worker_serves_its_metrics(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = manifests.container("worker")
    settings = settings_of(worker, monkeypatch)
    assert settings.worker.metrics_port == worker.port("metrics")
    assert settings.host == "0.0.0.0"


def test_triton_is_found_by_the_name_of_all_its_replicas(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = manifests.container("triton")
    for part in ("gateway", "worker"):
        url = settings_of(manifests.container(part), monkeypatch).triton.url
        found = re.fullmatch(r"dns:///(.+):(\d+)", url)
        assert found is not None
        service = manifests.get("Service", found[1])["spec"]
        assert service["clusterIP"] == "None"
        assert int(found[2]) == triton.port("grpc")
    for name in ("http", "grpc", "metrics"):
        assert int(option(triton, f"--{name}-port")) == triton.port(name)


def test_triton_knows_its_options(manifests: Manifests) -> None:
    known = subprocess.run(
        [str(embedded.triton_server()), "--help"],
        env=embedded.triton_environment(),
        capture_output=True,
        text=True,
    )
    options = set(_OPTION.findall(known.stdout + known.stderr))
    given = {m[0] for word in manifests.container("triton").words if (m := _OPTION.match(word))}
    assert given
    assert given <= options


def test_the_job_writes_what_triton_loads(tmp_path: Path) -> None:
    weights, triton = sources().container("weights"), sources().container("triton")
    *shell, script = weights.words
    assert "/etc/vitrine/pull.txt" in script
    done = subprocess.run(
        [*shell, script.replace("/etc/vitrine", str(K8S / "base" / "settings"))],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VITRINE_DATA_DIR": str(tmp_path),
            "DEVICE": weights.env["DEVICE"],
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # The others are loaded on first use.
    defaults = {card.id for card in cards(tmp_path / "repository") if card.default}
    loaded = {w.partition("=")[2] for w in triton.words if w.startswith("--load-model=")}
    assert loaded == defaults | {CATALOGUE}
    inside = Path(weights.env["VITRINE_DATA_DIR"]) / "repository"
    assert option(triton, "--model-repository") == str(inside)
    assert (
        str(inside / CATALOGUE / "config.pbtxt")
        in sources().container("wait-for-weights").words[-1]
    )


def test_the_examples_of_downloads_are_published() -> None:
    lines = (K8S / "base" / "settings" / "pull.txt").read_text().splitlines()
    examples = [line.lstrip("# ").split()[0] for line in lines if re.match(r"#? ?[\w-]+:", line)]
    assert examples
    for example in examples:
        published(example)


def test_pods_have_the_time_that_they_need_to_stop(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(container: Container) -> float:
        return float(
            container.spec.get("lifecycle", {})
            .get("preStop", {})
            .get("sleep", {})
            .get("seconds", 0)
        )

    gateway, worker, triton = map(manifests.container, ("gateway", "worker", "triton"))
    margin = 5
    limits = settings_of(gateway, monkeypatch).limits
    drain = limits.drain_delay_seconds + limits.drain_seconds
    assert pause(gateway) > gateway.spec["readinessProbe"]["periodSeconds"]
    assert gateway.pod["terminationGracePeriodSeconds"] >= pause(gateway) + drain + margin
    drain = settings_of(worker, monkeypatch).jobs.drain_s
    assert worker.pod["terminationGracePeriodSeconds"] >= drain + margin
    drain = float(option(triton, "--exit-timeout-secs"))
    assert pause(triton) > float(option(triton, "--grpc-max-connection-age")) / 1000
    assert triton.pod["terminationGracePeriodSeconds"] >= pause(triton) + drain + margin


def test_ways_in_let_through_what_the_gateway_takes(manifests: Manifests) -> None:
    limits = Settings().limits
    for ingress in manifests.of("Ingress"):
        notes = {k.rpartition("/")[2]: v for k, v in ingress["metadata"]["annotations"].items()}
        assert notes["proxy-body-size"] == f"{limits.body_bytes // 1024**2}m"
        assert notes["proxy-buffering"] == notes["proxy-request-buffering"] == "off"
        assert float(notes["proxy-read-timeout"]) > max(limits.request_seconds, endpoints._PING_S)
    for route in manifests.of("HTTPRoute"):
        by_path = {
            r["matches"][0]["path"]["value"]: r["timeouts"]["request"]
            for r in route["spec"]["rules"]
        }
        assert float(by_path["/"].removesuffix("s")) > limits.request_seconds
        assert by_path[endpoints.router.prefix] == "0s"


async def test_scalers_ask_for_metrics_that_exist(tmp_path: Path) -> None:
    own = {
        name
        for source in (ROOT / "service").rglob("*.py")
        for name in re.findall(r'"(vitrine_[a-z0-9_]+)"', source.read_text())
    }
    documents = [*sources().of("ScaledObject")]
    documents += yaml.safe_load_all(
        (K8S / "components/scale-to-zero/kustomization.yaml").read_text()
    )
    asked = set(_METRIC.findall(yaml.safe_dump(documents)))
    assert {name[:3] for name in asked} == {"vit", "nv_"}
    assert asked <= own | await triton_metrics(tmp_path) | _WITH_A_GPU


async def triton_metrics(folder: Path) -> set[str]:
    """Return the names of a real Triton's metrics."""
    repository, backends = folder / "repository", folder / "backends"
    write_catalogue(repository)
    embedded.write_backends(backends)
    ports = embedded.TritonPorts(*free_ports(3))
    process = await Process.start(
        embedded.triton_command(repository, backends, ports, [CATALOGUE]),
        embedded.triton_environment(),
        folder / "triton.log",
    )
    try:
        async with asyncio.timeout(60), httpx2.AsyncClient() as client:
            while process.status is None:
                with contextlib.suppress(httpx2.TransportError):
                    text = (await client.get(f"http://127.0.0.1:{ports.metrics}/metrics")).text
                    if f'model="{CATALOGUE}"' in text:
                        return set(_METRIC.findall(text))
                await asyncio.sleep(0.1)
        raise AssertionError((folder / "triton.log").read_text()[-2000:])
    finally:
        await process.stop(5)
        remove_shared_memory(repository)


def test_workers_are_scaled_by_what_one_runs(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    concurrency = settings_of(manifests.container("worker"), monkeypatch).jobs.concurrency
    for scaler in manifests.of("ScaledObject"):
        if scaler["metadata"]["name"] == "worker":
            (trigger,) = scaler["spec"]["triggers"]
            assert float(trigger["metadata"]["threshold"]) == concurrency


def test_the_simulated_scaler_is_that_of_production(tmp_path: Path) -> None:
    scaler = rendered("production", tmp_path).get("ScaledObject", "worker")["spec"]
    behavior = scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    up = {policy["type"]: policy for policy in behavior["scaleUp"]["policies"]}
    (down,) = behavior["scaleDown"]["policies"]
    assert WORKERS.least == scaler["minReplicaCount"]
    assert WORKERS.most == scaler["maxReplicaCount"]
    assert WORKERS.slots == float(scaler["triggers"][0]["metadata"]["threshold"])
    assert WORKERS.polling_s == scaler["pollingInterval"]
    assert WORKERS.cooldown_s == scaler["cooldownPeriod"]
    assert WORKERS.stabilization_s == behavior["scaleDown"]["stabilizationWindowSeconds"]
    assert WORKERS.up_percent == up["Percent"]["value"]
    assert WORKERS.up_pods == up["Pods"]["value"]
    assert {WORKERS.up_period_s} == {policy["periodSeconds"] for policy in up.values()}
    assert WORKERS.down_percent == down["value"]
    assert WORKERS.down_period_s == down["periodSeconds"]


def test_alerts_are_those_of_prometheus() -> None:
    assert rules.TARGET.read_text() == rules.document(), "run: python k8s/rules.py"


def test_alerts_pass_promtool(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    for each in yaml.safe_load_all(rules.TARGET.read_text()):
        if each is not None:
            file = tmp_path / f"{each['metadata']['name']}.yml"
            file.write_text(yaml.safe_dump(each["spec"]))
            done = subprocess.run(
                [promtool, "check", "rules", str(file)], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_all_dashboards_are_shipped() -> None:
    folder = ROOT / "deploy" / "grafana" / "dashboards"
    (generator,) = yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    assert sorted(generator["files"]) == sorted(path.name for path in folder.glob("*.json"))
