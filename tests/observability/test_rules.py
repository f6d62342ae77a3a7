"""Dashboards and alert rules as files: they are what the script writes, and every alert is explained."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from deploy.grafana.__main__ import FOLDER, files
from tests.observability.promql import ROOT, RULES, asked, dashboard_queries, rule_queries, rules

RUNBOOKS = ROOT / "docs/runbooks.md"
RULES_TEST = ROOT / "deploy/prometheus/rules_test.yml"
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDS = {rule["record"] for rule in rules() if "record" in rule}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)


def test_dashboards_are_what_the_script_writes() -> None:
    written = files()
    assert {path: path.read_text() for path in FOLDER.glob("*.json")} == written, (
        "run python -m deploy.grafana"
    )


def test_every_expression_parses_and_reads_only_recorded_series_that_exist() -> None:
    queries = dashboard_queries() + rule_queries()
    assert len(queries) > 60
    for query in queries:
        recorded = {name for name in asked(query.text).labels if ":" in name}
        assert recorded <= RECORDS, query


def test_alerts_and_runbooks_match() -> None:
    entries = re.findall(r"^## (Vitrine\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(entries) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"].endswith(f"/runbooks#{name.lower()}")
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_runbooks_refer_to_entries_that_exist() -> None:
    text = RUNBOOKS.read_text()
    for label, anchor in re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", text):
        assert label in ALERTS
        assert anchor == label.lower()


def test_every_alert_is_tested() -> None:
    """Each has a case in which it fires."""
    cases = yaml.safe_load(RULES_TEST.read_text())["tests"]
    fired = {
        expected["alertname"]
        for case in cases
        for expected in case["alert_rule_test"]
        if expected.get("exp_alerts")
    }
    assert fired == set(ALERTS)


@needs_promtool
def test_promtool_accepts_the_rules_and_their_tests() -> None:
    for command in (["check", "rules", *RULES], ["test", "rules", RULES_TEST]):
        done = subprocess.run(
            ["promtool", *map(str, command)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
