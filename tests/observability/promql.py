"""What PromQL expressions ask for, and whether an exposition has it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
_VARIABLE = re.compile(r"\$(\w+)")
# Added by whatever scrapes.
_TARGET_LABELS = {"job", "instance"}


@dataclass(frozen=True)
class Expression:
    """One query with the place that it comes from, Grafana's variables filled in."""

    place: str
    text: str

    def __str__(self) -> str:
        return self.place


@dataclass
class Asked:
    """Metric names of an expression, with the labels that it matches or groups by."""

    labels: dict[str, set[str]] = field(default_factory=dict)


def _filled(text: str) -> str:
    return _VARIABLE.sub(lambda found: "1m" if found[1] == "__rate_interval" else ".*", text)


def dashboard_queries() -> list[Expression]:
    return [
        Expression(f"{path.stem}: {panel['title']} {target['refId']}", _filled(target["expr"]))
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def rule_queries() -> list[Expression]:
    return [Expression(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def asked(text: str) -> Asked:
    """Return what an expression asks for. Raises ValueError where it is no PromQL."""
    found = Asked()
    _walk(promql_parser.parse(text), found, set())
    return found


def _walk(node: Any, found: Asked, grouped: set[str]) -> None:
    match node:
        case promql_parser.VectorSelector():
            labels = found.labels.setdefault(node.name, set())
            labels |= grouped | {matcher.name for matcher in node.matchers.matchers}
        case promql_parser.MatrixSelector():
            _walk(node.vector_selector, found, grouped)
        case promql_parser.AggregateExpr():
            by = node.modifier
            own = set(by.labels) if by and by.type == promql_parser.AggModifierType.By else set()
            _walk(node.expr, found, own)
        case promql_parser.BinaryExpr():
            _walk(node.lhs, found, grouped)
            _walk(node.rhs, found, grouped)
        case promql_parser.Call():
            for argument in node.args:
                _walk(argument, found, grouped)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            _walk(node.expr, found, grouped)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            pass
        case _:
            raise TypeError(f"unknown node {node!r}")


class Exposition:
    """Metric families of real processes: the labels of their samples, by sample name."""

    def __init__(self) -> None:
        self.labels: dict[str, set[str]] = {}
        self.silent: set[str] = set()

    def add(self, text: str) -> None:
        written = set(re.findall(r"^(\w+)[{ ]", text, re.MULTILINE))
        for family in text_string_to_metric_families(text):
            if not family.samples:
                self.silent.add(f"{family.name}_total" if family.type == "counter" else family.name)
            for sample in family.samples:
                # The parser adds _total to counters that Triton names otherwise.
                bare = sample.name.removesuffix("_total")
                name = sample.name if sample.name in written else bare
                self.labels.setdefault(name, set()).update(sample.labels)

    def lacks(self, wanted: Asked) -> list[str]:
        """Return what is asked for and is not there. Families without samples have no labels yet."""
        missing = []
        for name, labels in wanted.labels.items():
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            if name in self.labels:
                unknown = labels - self.labels[name] - _TARGET_LABELS
                missing += [f"{name}{{{label}}}" for label in sorted(unknown)]
            elif name not in self.silent and base not in self.silent:
                missing.append(name)
        return missing
