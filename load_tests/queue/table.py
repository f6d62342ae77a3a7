"""The queue's figures as Markdown."""

from __future__ import annotations

from typing import Any

_COLUMNS = {
    "start p50 ms": "start_p50_ms",
    "start p99 ms": "start_p99_ms",
    "submit p50 ms": "submit_p50_ms",
    "jobs/s, 1 worker": "drained_1",
    "2 workers": "drained_2",
    "4 workers": "drained_4",
    "commands sent": "commands_sent",
    "called by scripts": "commands_called",
    "network bytes": "network_bytes",
    "bytes waiting": "waiting_bytes",
    "bytes kept": "kept_bytes",
    "Redis CPU µs": "redis_cpu_us",
}


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    on = report["machine"]
    lines = ["# Job queue", ""]
    lines += [
        f"`python -m load_tests.queue` on {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB; "
        "clients, workers and Redis share the cores, so read the ratios.",
        "",
    ]
    if compare := report.get("compare"):
        lines += _compare(compare)
    if found := report.get("interactive"):
        lines += _interactive(found)
    return "\n".join(lines).rstrip() + "\n"


def _compare(compare: dict[str, Any]) -> list[str]:
    rows = compare["contenders"]
    ours = rows["vitrine"]
    lines = [
        f"An empty job on Redis {compare['redis']} with an append-only file. Start: from the call "
        "that submits it to its first line, with one idle worker. Commands, bytes and CPU are "
        "Redis', a job: from submission to end; memory while a job waits, and what is kept of one "
        "that has ended: here its events for an hour and its record "
        "for a week, elsewhere a result.",
        "",
        "| | " + " | ".join(_COLUMNS) + " |",
        "|---|" + "---|" * len(_COLUMNS),
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | " + " | ".join(_figure(row[key]) for key in _COLUMNS.values()) + " |"
        )
    lines += ["", "Over vitrine:", "", "| | " + " | ".join(_COLUMNS) + " |"]
    lines.append("|---|" + "---|" * len(_COLUMNS))
    for name, row in rows.items():
        if name != "vitrine":
            shares = [row[key] / ours[key] if ours[key] else 0.0 for key in _COLUMNS.values()]
            lines.append(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    return [
        *lines,
        "",
        "vitrine: 4 jobs at a time a worker, the result written to a directory; turns of tenants, "
        "position, progress events and idempotency are in its figures. celery: 4 threads, late "
        "acknowledgement. arq: 64 at a time, looking every 10 ms (by default 10, every 500 ms: "
        "20 jobs/s). streaq: 16 at a time. With two cores for all, more workers than one mostly "
        "share what there is.",
        "",
    ]


def _interactive(found: dict[str, Any]) -> list[str]:
    lines = [
        f"`POST /v1/classify` ({found['model']}), {found['clients']} clients that pause "
        f"{found['pause_ms']:.0f} ms between calls, without and while a queue of {found['jobs']} jobs "
        f"of the same kind drains ({found['drained']} of them within the measurement). Both share "
        "the model, the worker's jobs at most four requests at a time:",
        "",
        "| | requests/s | p50 ms | p95 ms | p99 ms | jobs/s |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("without", "while"):
        row = found[name]
        drained = f"{row['jobs_per_second']:.1f}" if row.get("jobs_per_second") else ""
        lines.append(
            f"| {name} | {row['per_second']:.1f} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} "
            f"| {row['p99_ms']:.1f} | {drained} |"
        )
    return [*lines, "", f"p99 while / without: {found['p99_ratio']:.2f}", ""]


def _figure(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
