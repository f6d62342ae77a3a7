"""The mixed load scenario for a few seconds: every kind of request is sent, and none fails."""

from __future__ import annotations

import csv
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.service import Service

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("locust") is None, reason="locust is missing: pip install '.[bench]'")
def test_the_mixed_scenario_meets_no_failure(service: Service, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", "load_tests/locustfile.py"),
            *("--host", service.url, "--headless", "-u", "18", "-r", "18", "-t", "6s"),
            *("--stop-timeout", "30", "--csv", str(tmp_path / "load"), "--only-summary"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "load_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert rows["Aggregated"]["Failure Count"] == "0"
    assert rows.keys() >= {"classify jpeg", "deepfake", "generate", "jobs", "models"}
