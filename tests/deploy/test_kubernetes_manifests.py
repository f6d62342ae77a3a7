"""The Kubernetes manifests in themselves: schemas, hardening, and that what names something names it rightly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.kubernetes import (
    K8S,
    OVERLAYS,
    Container,
    Manifests,
    rendered,
    selects,
    sources,
    template,
)

_SCHEMAS = Path(__file__).parent / "schemas"
_LONG_RUNNING = {"Deployment", "StatefulSet"}
_SPREAD = {"gateway", "worker", "triton"}
_UNSCOPED = {"Namespace", "PriorityClass"}


@pytest.fixture(scope="module", params=["files", *OVERLAYS, "variation"])
def manifests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Manifests:
    if request.param == "files":
        return sources()
    return rendered(request.param, tmp_path_factory.mktemp("variation"))


def where(container: Container) -> str:
    return f"{container.owner['metadata']['name']}/{container.name}"


def test_every_file_is_used_and_every_reference_exists() -> None:
    used = {K8S / "rules.py"}
    for kustomization in K8S.glob("**/kustomization.yaml"):
        folder, text = kustomization.parent, yaml.safe_load(kustomization.read_text())
        named = [*text.get("resources", []), *text.get("components", [])]
        named += [patch["path"] for patch in text.get("patches", []) if "path" in patch]
        for generator in text.get("configMapGenerator", []):
            named += [*generator.get("envs", []), *generator.get("files", [])]
        for name in named:
            path = (folder / name).resolve()
            assert path.exists(), f"{kustomization}: {name}"
            used.add(path)
        used.add(kustomization)
        for patch in text.get("patches", []):
            if "patch" in patch:
                assert yaml.safe_load(patch["patch"])
    lost = {p for p in K8S.rglob("*") if p.is_file() and "__pycache__" not in p.parts} - used
    assert not lost


def test_objects_are_valid(manifests: Manifests) -> None:
    own = {path.stem: json.loads(path.read_text()) for path in _SCHEMAS.glob("*.json")}
    for document in manifests.documents:
        if document["kind"] in own:
            jsonschema.validate(document, own[document["kind"]])
        else:
            kubernetes_validate.validate(document, "1.37", strict=True)
    names = [(d["kind"], d["metadata"]["name"]) for d in manifests.documents]
    assert len(names) == len(set(names))


def test_everything_is_in_the_namespace_with_restricted_pods(manifests: Manifests) -> None:
    labels = manifests.get("Namespace", "vitrine")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    if any("namespace" in d["metadata"] for d in manifests.documents):  # as rendered
        outside = [
            (d["kind"], d["metadata"]["name"])
            for d in manifests.documents
            if d["kind"] not in _UNSCOPED and d["metadata"].get("namespace") != "vitrine"
        ]
        assert not outside


def test_images_are_pinned(manifests: Manifests) -> None:
    base = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())
    tags = {image["name"]: image["newTag"] for image in base["images"]}
    for container in manifests.containers:
        image = container.spec["image"]
        tag = tags.get(image) or image.rpartition("/")[2].partition(":")[2]
        assert tag, where(container)
        assert tag != "latest", where(container)


def test_containers_are_restricted_and_bounded(manifests: Manifests) -> None:
    for container in manifests.containers:
        security = container.spec["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, where(container)
        assert security["readOnlyRootFilesystem"] is True, where(container)
        assert security["capabilities"] == {"drop": ["ALL"]}, where(container)
        resources = container.spec["resources"]
        for kind in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= resources[kind].keys(), where(
                container
            )
        writable = {m["name"] for m in container.spec["volumeMounts"]}
        assert writable <= {v["name"] for v in volumes(container)}, where(container)


def volumes(container: Container) -> list[dict[str, object]]:
    claims = container.owner["spec"].get("volumeClaimTemplates", [])
    return [*container.pod.get("volumes", []), *(claim["metadata"] for claim in claims)]


def test_pods_are_nobody_with_a_priority(manifests: Manifests) -> None:
    for owner in manifests.workloads:
        pod = template(owner)["spec"]
        name = owner["metadata"]["name"]
        assert pod["automountServiceAccountToken"] is False, name
        account = manifests.get("ServiceAccount", pod["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False, name
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert manifests.has("PriorityClass", pod["priorityClassName"]), name
        assert pod["terminationGracePeriodSeconds"] > 0, name


def test_what_runs_on_is_probed_spread_and_kept_through_drains(manifests: Manifests) -> None:
    for owner in manifests.workloads:
        if owner["kind"] not in _LONG_RUNNING:
            continue
        name = owner["metadata"]["name"]
        labels = template(owner)["metadata"]["labels"]
        for container in template(owner)["spec"]["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name
        budgets = [
            budget
            for budget in manifests.of("PodDisruptionBudget")
            if selects(budget["spec"]["selector"], labels)
        ]
        assert len(budgets) == 1, name
        assert budgets[0]["spec"]["maxUnavailable"] != 0, "nodes could never be drained"
        spread = template(owner)["spec"].get("topologySpreadConstraints", [])
        assert bool(spread) == (name in _SPREAD), name
        assert all(selects(constraint["labelSelector"], labels) for constraint in spread), name


def test_selectors_select(manifests: Manifests) -> None:
    pods = [template(owner)["metadata"]["labels"] for owner in manifests.workloads]
    for owner in manifests.of("Deployment", "StatefulSet"):
        assert selects(owner["spec"]["selector"], template(owner)["metadata"]["labels"])
    for service in manifests.of("Service"):
        chosen = [
            owner
            for owner in manifests.workloads
            if selects(
                {"matchLabels": service["spec"]["selector"]}, template(owner)["metadata"]["labels"]
            )
        ]
        assert len(chosen) == 1, service["metadata"]["name"]
        (container,) = template(chosen[0])["spec"]["containers"]
        names = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for policy in manifests.of("NetworkPolicy"):
        assert any(selects(policy["spec"]["podSelector"], pod) for pod in pods)
    for monitor in manifests.of("ServiceMonitor"):
        (service,) = [
            s
            for s in manifests.of("Service")
            if selects(monitor["spec"]["selector"], s["metadata"]["labels"])
        ]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_scalers_scale_what_there_is_and_nobody_else_sets_its_replicas(
    manifests: Manifests,
) -> None:
    targets = [
        scaler["spec"]["scaleTargetRef"]["name"]
        for scaler in manifests.of("HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert len(targets) == len(set(targets))
    for name in targets:
        assert "replicas" not in manifests.get("Deployment", name)["spec"]
    for scaler in manifests.of("ScaledObject"):
        spec = scaler["spec"]
        assert 0 <= spec["minReplicaCount"] < spec["maxReplicaCount"]


def test_ways_in_lead_to_the_gateway(manifests: Manifests) -> None:
    service = manifests.get("Service", "gateway")["spec"]["ports"][0]
    for ingress in manifests.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"]["service"] == {
                    "name": "gateway",
                    "port": {"name": service["name"]},
                }
    for route in manifests.of("HTTPRoute"):
        listeners = {
            (gateway["metadata"]["name"], listener["name"])
            for gateway in manifests.of("Gateway")
            for listener in gateway["spec"]["listeners"]
        }
        assert {(p["name"], p["sectionName"]) for p in route["spec"]["parentRefs"]} <= listeners
        for rule in route["spec"]["rules"]:
            assert rule["backendRefs"] == [{"name": "gateway", "port": service["port"]}]


def test_the_network_is_closed_but_for_what_is_needed(manifests: Manifests) -> None:
    deny = manifests.get("NetworkPolicy", "default-deny")["spec"]
    assert deny["podSelector"] == {}
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}
    needed = {(part, "triton", 8001) for part in ("gateway", "worker")}
    needed |= {(part, "redis", 6379) for part in ("gateway", "worker")}
    names = [owner["metadata"]["name"] for owner in manifests.workloads]
    ports = {
        c.owner["metadata"]["name"]: [p["containerPort"] for p in c.spec.get("ports", [])]
        for c in manifests.containers
        if not c.initial
    }
    open_ways = {
        (source, target, port)
        for source in names
        for target in names
        for port in ports[target]
        if manifests.reaches(source, target, port)
    }
    assert open_ways == {way for way in needed if way[1] in names}


def test_the_internet_is_for_those_who_need_it(manifests: Manifests) -> None:
    public, private, metadata = "8.8.8.8", "10.1.2.3", "169.254.169.254"
    assert manifests.reaches("gateway", public, 443)
    assert manifests.reaches("weights", public, 443)
    assert not manifests.reaches("gateway", private, 80)
    assert not manifests.reaches("gateway", private, 443)
    for owner in manifests.workloads:
        name = owner["metadata"]["name"]
        assert not manifests.reaches(name, metadata, 80), name
        if name in ("triton", "redis"):
            assert not manifests.reaches(name, public, 443), name


def test_every_pod_has_a_policy_of_its_own(manifests: Manifests) -> None:
    for owner in manifests.workloads:
        labels = template(owner)["metadata"]["labels"]
        own = [
            policy
            for policy in manifests.of("NetworkPolicy")
            if policy["spec"]["podSelector"] and selects(policy["spec"]["podSelector"], labels)
        ]
        assert own, owner["metadata"]["name"]


def test_claims_exist(manifests: Manifests) -> None:
    for owner in manifests.workloads:
        for volume in template(owner)["spec"].get("volumes", []):
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert manifests.has("PersistentVolumeClaim", claim)


def test_secrets_are_named_in_the_guide(manifests: Manifests) -> None:
    guide = (K8S.parent / "docs" / "kubernetes.md").read_text()
    for container in manifests.containers:
        for value in container.env.values():
            if found := re.fullmatch(r"secret:(.+)/(.+)", value):
                name, key = found.groups()
                assert re.search(rf"{name}\b[^`]*?--from-literal={key}=", guide), value


@pytest.mark.parametrize("name", [*OVERLAYS, "variation"])
def test_overlays_differ_as_they_say(name: str, tmp_path: Path) -> None:
    found = rendered(name, tmp_path)
    image = found.container("triton").spec["image"]
    assert image.endswith("-cpu") == (name == "cpu")
    assert found.container("weights").spec["image"] == image
    on_gpu = "nvidia.com/gpu" in found.container("triton").spec["resources"]["limits"]
    assert on_gpu == (name != "cpu")
    assert found.container("weights").env["DEVICE"] == ("cuda" if on_gpu else "cpu")
    outside = name in ("production", "variation")
    assert found.has("StatefulSet", "redis") != outside
    assert found.has("PersistentVolumeClaim", "storage") != outside
    for part in ("gateway", "worker"):
        env = found.container(part).env
        assert env["VITRINE_REDIS__URL"].startswith("secret:" if outside else "redis://redis:")
        assert ("VITRINE_STORAGE__URL" in env) == outside
        (data,) = [v for v in found.container(part).pod["volumes"] if v["name"] == "data"]
        assert ("persistentVolumeClaim" in data, "emptyDir" in data) == (not outside, outside)
    least = {s["spec"]["minReplicaCount"] for s in found.of("ScaledObject")}
    assert least == {"production": {2}, "variation": {0}}.get(name, set())
    assert bool(found.of("HTTPRoute")) == (name == "variation")
