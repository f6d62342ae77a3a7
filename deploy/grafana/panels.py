"""What a dashboard is made of, and how that becomes Grafana's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_COLUMNS = 24
_SCHEMA_VERSION = 39
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLOURS = ("green", "orange", "red")


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression; `legend` names its series by their labels (`{{model}}`)."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart (`timeseries`) or the last value of its queries (`stat`).

    `unit` is Grafana's (s, reqps, percentunit, bytes, short). `limits` are the values from which it
    turns orange and red; given from high to low, low values are the bad ones.
    """

    title: str
    queries: Sequence[Query]
    description: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"
    unit: str = "short"
    width: int = 8
    stacked: bool = False
    most: float | None = None
    limits: tuple[float, float] | None = None

    def document(self, id: int, x: int, y: int, height: int) -> dict[str, Any]:
        """Return Grafana's panel at column `x` and row `y` of the grid."""
        options: dict[str, Any] = (
            {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background"}
            if self.kind == "stat"
            else {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        )
        defaults: dict[str, Any] = {"unit": self.unit, "min": 0, "thresholds": self._thresholds()}
        if self.most is not None:
            defaults["max"] = self.most
        if self.kind == "timeseries":
            defaults["custom"] = {
                "fillOpacity": 20 if self.stacked else 5,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none"},
            }
        return {
            "id": id,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": options,
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": _DATASOURCE,
                    "expr": query.expr,
                    "legendFormat": query.legend or "__auto",
                    "range": True,
                }
                for index, query in enumerate(self.queries)
            ],
        }

    def _thresholds(self) -> dict[str, Any]:
        colours, values = list(_COLOURS), list(self.limits or ())
        if len(values) == 2 and values[0] > values[1]:
            colours.reverse()
            values.reverse()
        steps: list[dict[str, Any]] = [{"color": colours[0] if values else "blue", "value": None}]
        steps += [
            {"color": colour, "value": value}
            for colour, value in zip(colours[1:], values, strict=False)
        ]
        return {"mode": "absolute", "steps": steps}


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below a heading, set from left to right."""

    title: str
    panels: Sequence[Panel]
    height: int = 8


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of the page: the values of a metric's label, all of them at first."""

    name: str
    metric: str
    label: str

    def document(self) -> dict[str, Any]:
        query = f"label_values({self.metric}, {self.label})"
        return {
            "name": self.name,
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": query, "refId": "values"},
            "definition": query,
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = field(default_factory=tuple)

    def document(self) -> dict[str, Any]:
        """Return what Grafana reads."""
        source = {"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1}
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["vitrine"],
            "schemaVersion": _SCHEMA_VERSION,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "timezone": "browser",
            "links": [
                {
                    "type": "dashboards",
                    "title": "Vitrine",
                    "tags": ["vitrine"],
                    "asDropdown": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [source, *(each.document() for each in self.variables)]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            found.append(
                {
                    "id": len(found) + 1,
                    "type": "row",
                    "title": row.title,
                    "collapsed": False,
                    "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
                    "panels": [],
                }
            )
            x, y = 0, y + 1
            for panel in row.panels:
                if x + panel.width > _COLUMNS:
                    x, y = 0, y + row.height
                found.append(panel.document(len(found) + 1, x, y, row.height))
                x += panel.width
            y += row.height
        return found
