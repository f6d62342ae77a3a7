"""The Kubernetes manifests as tests read them: rendered by kubectl, or as they lie in the files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("cpu", "gpu", "production")
# What no overlay has: rendered over `production`, so that every component is seen with the others.
VARIATION = ("gateway-api", "scale-to-zero")

Document = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """A container of a pod template; `env` has its ConfigMaps resolved, Secrets as `secret:NAME/KEY`."""

    owner: Document
    spec: Document
    env: dict[str, str]
    initial: bool

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def pod(self) -> Document:
        return template(self.owner)["spec"]

    @property
    def words(self) -> list[str]:
        return [*self.spec.get("command", []), *self.spec.get("args", [])]

    def port(self, name: str | int) -> int:
        if isinstance(name, int):
            return name
        return next(p["containerPort"] for p in self.spec["ports"] if p["name"] == name)


@dataclass(frozen=True)
class Manifests:
    """All objects of one installation."""

    documents: list[Document]

    def of(self, *kinds: str) -> list[Document]:
        return [d for d in self.documents if d["kind"] in kinds]

    def get(self, kind: str, name: str) -> Document:
        return next(d for d in self.of(kind) if d["metadata"]["name"] == name)

    def has(self, kind: str, name: str) -> bool:
        return any(d["metadata"]["name"] == name for d in self.of(kind))

    @cached_property
    def workloads(self) -> list[Document]:
        return self.of("Deployment", "StatefulSet", "Job")

    def workload(self, name: str) -> Document:
        return next(d for d in self.workloads if d["metadata"]["name"] == name)

    @cached_property
    def containers(self) -> list[Container]:
        return [container for owner in self.workloads for container in self._containers(owner)]

    def container(self, name: str) -> Container:
        return next(c for c in self.containers if c.name == name)

    def _containers(self, owner: Document) -> Iterator[Container]:
        pod = template(owner)["spec"]
        for initial, key in ((True, "initContainers"), (False, "containers")):
            for spec in pod.get(key, []):
                env: dict[str, str] = {}
                for source in spec.get("envFrom", []):
                    env |= self.get("ConfigMap", source["configMapRef"]["name"])["data"]
                for variable in spec.get("env", []):
                    env[variable["name"]] = self._value(variable)
                yield Container(owner, spec, env, initial)

    def _value(self, variable: Document) -> str:
        if "value" in variable:
            return str(variable["value"])
        source = variable["valueFrom"]
        if "secretKeyRef" in source:
            return f"secret:{source['secretKeyRef']['name']}/{source['secretKeyRef']['key']}"
        if "configMapKeyRef" in source:
            chosen = source["configMapKeyRef"]
            return str(self.get("ConfigMap", chosen["name"])["data"][chosen["key"]])
        return str(source["resourceFieldRef"]["resource"])

    def reaches(self, source: str, target: str, port: int) -> bool:
        """Whether the NetworkPolicies let pods of workload `source` connect to those of `target`.

        `target` is a workload's name or an IP address.
        """
        here = template(self.workload(source))["metadata"]["labels"]
        if re.match(r"[\d.]+$", target):
            return self._passes(here, "egress", "to", target, port)
        there = template(self.workload(target))["metadata"]["labels"]
        return self._passes(here, "egress", "to", there, port) and self._passes(
            there, "ingress", "from", here, port
        )

    def _passes(
        self, pod: Document, way: str, peers: str, other: Document | str, port: int
    ) -> bool:
        policies = [
            policy["spec"]
            for policy in self.of("NetworkPolicy")
            if selects(policy["spec"]["podSelector"], pod)
            and way.capitalize() in policy["spec"]["policyTypes"]
        ]
        return not policies or any(
            port in {p["port"] for p in rule["ports"]}
            and any(_is_peer(peer, other) for peer in rule[peers])
            for policy in policies
            for rule in policy.get(way, [])
        )


def _is_peer(peer: Document, other: Document | str) -> bool:
    if isinstance(other, str):
        block = peer.get("ipBlock")
        return (
            block is not None
            and ip_address(other) in ip_network(block["cidr"])
            and not any(ip_address(other) in ip_network(e) for e in block.get("except", []))
        )
    # Pods of other namespaces are none of ours.
    return "namespaceSelector" not in peer and selects(peer.get("podSelector"), other)


def template(owner: Document) -> Document:
    return owner["spec"]["template"]  # type: ignore[no-any-return]


def selects(selector: Document | None, labels: Document) -> bool:
    """Whether a label selector (matchLabels, matchExpressions with In) selects something so labelled."""
    if selector is None:
        return False
    matched = selector.get("matchLabels", {}).items() <= labels.items()
    return matched and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", [])
    )


# Rendered by kubectl


def rendered(name: str, folder: Path) -> Manifests:
    """Render an overlay, or the variation of `production` in `folder`. Skips where kubectl cannot."""
    kubectl = _kubectl()
    target = K8S / "overlays" / name
    if name == "variation":
        target = folder
        # Kustomize takes relative paths only.
        up = os.path.relpath(K8S, folder.resolve())
        components = [f"{up}/components/{each}" for each in VARIATION]
        text = {
            "namespace": "vitrine",
            "resources": [f"{up}/overlays/production"],
            "components": components,
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    done = subprocess.run([kubectl, "kustomize", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Manifests([d for d in yaml.safe_load_all(done.stdout) if d])


def _kubectl() -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; k8s/ is checked as it lies in the files only")
    asked = subprocess.run([kubectl, "version", "--client", "-o", "json"], capture_output=True)
    version = json.loads(asked.stdout or "{}").get("kustomizeVersion", "v0")
    if int(version.lstrip("v").split(".")[0]) < 4:
        pytest.skip(f"kubectl brings kustomize {version}, which knows no components")
    return kubectl


# As it lies in the files


def sources() -> Manifests:
    """Return the objects of base and every component, with generated ConfigMaps and without patches."""
    documents: list[Document] = []
    for kustomization in sorted(K8S.glob("**/kustomization.yaml")):
        if "overlays" not in kustomization.parts:
            documents += _objects(kustomization)
    maps: dict[str, Document] = {}
    for each in [d for d in documents if d["kind"] == "ConfigMap"]:
        maps.setdefault(each["metadata"]["name"], each)["data"].update(each["data"])
    return Manifests([d for d in documents if d["kind"] != "ConfigMap"] + list(maps.values()))


def _objects(kustomization: Path) -> Iterator[Document]:
    folder = kustomization.parent
    description = yaml.safe_load(kustomization.read_text())
    for resource in description.get("resources", []):
        if (folder / resource).is_file():
            yield from (d for d in yaml.safe_load_all((folder / resource).read_text()) if d)
    for generated in description.get("configMapGenerator", []):
        pairs = [*generated.get("literals", [])]
        for file in generated.get("envs", []):
            pairs += [row for row in (folder / file).read_text().splitlines() if row[:1] != "#"]
        data = dict(pair.split("=", 1) for pair in pairs)
        data |= {
            Path(file).name: (folder / file).read_text() for file in generated.get("files", [])
        }
        yield {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": generated["name"]},
            "data": data,
        }
