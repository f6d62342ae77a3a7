"""Every query of the dashboards and alerts against the metrics of a running service."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from prometheus_client.metrics import MetricWrapperBase

from service.jobs.metrics import WorkerMetrics
from service.observability.metrics import Metrics
from tests.e2e.service import Service
from tests.e2e.test_traces import picture
from tests.observability.prometheus import BINARY, Prometheus, scraping
from tests.observability.promql import (
    RULES,
    Exposition,
    Expression,
    asked,
    dashboard_queries,
    rule_queries,
    rules,
)

# What Triton tells where it has a GPU, from its documentation (docs/user_guide/metrics.md).
GPU_METRICS = {
    f"nv_{name}": {"gpu_uuid"}
    for name in (
        "gpu_power_usage",
        "gpu_power_limit",
        "energy_consumption",
        "gpu_utilization",
        "gpu_memory_total_bytes",
        "gpu_memory_used_bytes",
    )
}
# Of a healthy service without GPU these tell nothing: what has failed, been refused or started again.
NOTHING_TO_TELL = (
    "vitrine-gpu: Utilization",
    "vitrine-gpu: GPU memory",
    "vitrine-gpu: Power",
    "vitrine-gpu: Energy per item",
    "vitrine-gpu: Items per second and GPU",
    "vitrine-gpu: Pinned memory",
    "vitrine-overview: Failures of inference",
    "vitrine-models: Answers that are no success",
    "vitrine-models: Refused early",
    "vitrine-models: Circuit breaker",
    "vitrine-jobs: Share that failed",
    "vitrine-jobs: Started again",
)


def targets(service: Service) -> dict[str, str]:
    note = json.loads((service.data_dir / "up.json").read_text())
    urls = (service.url, note["worker_metrics"], note["triton_metrics"])
    return dict(
        zip(("gateway", "worker", "triton"), (urlsplit(u).netloc for u in urls), strict=True)
    )


def traffic(service: Service) -> None:
    service.post("/v1/classify", picture(), "image/png")
    service.generate("a red circle", steps=1)


@pytest.fixture(scope="module")
def exposition(service: Service) -> Exposition:
    traffic(service)
    found = Exposition()
    for target in targets(service).values():
        found.add(httpx2.get(f"http://{target}/metrics", trust_env=False).text)
    found.labels |= GPU_METRICS
    found.labels |= {rule["record"]: {"model", "route"} for rule in rules() if "record" in rule}
    # Families that count nothing yet have no samples to read their labels from.
    for instrument in [
        *Metrics().registry._collector_to_names,
        *WorkerMetrics().registry._collector_to_names,
    ]:
        if isinstance(instrument, MetricWrapperBase):
            (family,) = instrument.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            if name in found.silent:
                found.labels.setdefault(name, set(instrument._labelnames))
    return found


@pytest.mark.parametrize("query", dashboard_queries() + rule_queries(), ids=str)
def test_the_service_has_what_is_asked_for(query: Expression, exposition: Exposition) -> None:
    assert exposition.lacks(asked(query.text)) == []


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen traffic begin and go on."""
    if BINARY is None:
        pytest.skip("prometheus is missing: apt-get install prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    with scraping(directory, targets(service), RULES) as prometheus:
        prometheus.wait_for("count(up == 1) == 3")
        traffic(service)
        prometheus.wait_for("sum(rate(vitrine_jobs_finished_total[1m])) > 0")
        prometheus.wait_for("sum(rate(nv_inference_count[1m])) > 0")
        prometheus.wait_for(
            'sum(rate(vitrine_stage_duration_seconds_count{stage="infer"}[1m])) > 0'
        )
        yield prometheus


def test_every_query_of_the_dashboards_has_data(prometheus: Prometheus) -> None:
    empty = [str(query) for query in dashboard_queries() if not prometheus.query(query.text)]
    assert [place for place in empty if not place.startswith(NOTHING_TO_TELL)] == []


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    """And none fires: the service is well."""
    deadline = time.monotonic() + 60
    while True:
        found = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        if "unknown" not in {rule["health"] for rule in found}:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    names = {rule.get("alert") or rule["record"] for rule in rules()}
    assert {rule["name"]: rule.get("lastError", "") for rule in found} == dict.fromkeys(names, "")
    assert [rule["name"] for rule in found if rule.get("state") == "firing"] == []
