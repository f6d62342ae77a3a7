"""Write `components/monitoring/rules.yaml`: the rules of deploy/prometheus/rules as the Prometheus
operator takes them. `python k8s/rules.py`, after a change of the rules."""

from __future__ import annotations

from pathlib import Path

import yaml

_HERE = Path(__file__).parent
SOURCES = _HERE.parent / "deploy" / "prometheus" / "rules"
TARGET = _HERE / "components" / "monitoring" / "rules.yaml"
_HEADER = "# Written by `python k8s/rules.py` from deploy/prometheus/rules.\n"


def document() -> str:
    """Return the text of the PrometheusRules: one object a file of rules, named after it."""
    objects = [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": path.stem},
            "spec": {"groups": yaml.safe_load(path.read_text())["groups"]},
        }
        for path in sorted(SOURCES.glob("*.yml"))
    ]
    return _HEADER + yaml.safe_dump_all(objects, sort_keys=False, width=1000, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(document())
