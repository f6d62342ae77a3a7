"""The soak's figures as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from load_tests.soak.samples import Sample, Trend

_PANELS = {
    "Resident memory of processes, MiB": ("memory [MiB] of ", "model convnext-spare"),
    "Open files": ("open files of ", "model convnext-spare"),
    "Redis' data, MiB": ("memory [MiB] of Redis", ""),
    "Objects in storage": ("objects of storage", ""),
}


def grows(trend: Trend) -> bool:
    """Tell whether a quantity grows: beyond doubt, and by more than 5 % of its level in an hour."""
    if trend.slope <= 2 * trend.error:
        return False
    return trend.slope > 0.05 * max(abs(trend.last), 1.0) and trend.last > trend.first


def table(report: dict[str, Any], found: Sequence[Trend]) -> str:
    """Return the report as Markdown."""
    on = report["machine"]
    lines = [
        "# Soak",
        "",
        f"`python -m load_tests.soak --minutes {report['minutes']:g} --rate {report['rate']:g}` on {on['cpu']}, "
        f"{on['cores']} cores, {on['memory_gib']} GiB, shared with other work. {report['requests']} activities "
        f"in {report['ran_minutes']:.1f} minutes, {report['unexpected']} with an unexpected answer; the system "
        f"used {100 * report['cpu_share']:.0f} % of a core. Slopes are per hour, by least squares over the samples after the "
        f"first {report['warm_up_minutes']:.0f} minutes, ± the standard error.",
        "",
        "Records and results live for five minutes in this run, so that what is kept for a time reaches its level in the warm-up.",
        "",
        "![memory, open files, Redis and storage over time](soak.svg)",
        "",
        "| quantity | after warm-up | at the end | largest | slope per hour |",
        "|---|---|---|---|---|",
    ]
    for trend in found:
        if trend.quantity.startswith("threads"):
            continue
        mark = " **grows**" if grows(trend) else ""
        lines.append(
            f"| {trend.quantity} | {trend.first:.1f} | {trend.last:.1f} | {trend.largest:.1f} "
            f"| {trend.slope:+.2f} ± {trend.error:.2f}{mark} |"
        )
    lines += ["", "| activity: answer | count |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(report["answers"].items())]
    if report["surprises"]:
        lines += ["", "Unexpected answers:", ""]
        lines += [f"- `{surprise[:300]}`" for surprise in report["surprises"][:20]]
    return "\n".join(lines) + "\n"


def plot(samples: Sequence[Sample], warm_up_s: float, path: Path) -> None:
    """Draw memory, open files, Redis and storage over time."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 7), layout="constrained")
    for axis, (title, (prefix, without)) in zip(axes.flat, _PANELS.items(), strict=True):
        names = sorted({n for s in samples for n in s if n.startswith(prefix)})
        for name in names:
            if (without and name.endswith(without)) or (
                "Redis' data" in name and "Redis" not in title
            ):
                continue
            rows = [(s["time"] / 60, s[name]) for s in samples if name in s]
            axis.plot(*zip(*rows, strict=True), linewidth=1.2, label=name.removeprefix(prefix))
        axis.axvspan(0, warm_up_s / 60, color="0.93", zorder=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("minutes", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.grid(color="0.9")
        if len(names) > 1:
            axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
