"""The figures of a campaign as Markdown."""

from __future__ import annotations

from collections import Counter

from tests.fuzz.campaign import Campaign
from tests.fuzz.children import MEMORY_BYTES, SECONDS

_FAILURES = ("exception", "crash", "hang", "memory")


def markdown(campaign: Campaign) -> str:
    """Return a table: a row a format, with how many files were decoded, refused and failed."""
    totals: Counter[str] = Counter()
    lines = [
        "# Fuzzing the media decoders",
        "",
        f"`python -m tests.fuzz --inputs {campaign.inputs} --seed {campaign.seed}`: "
        f"{campaign.inputs:,} damaged files in {campaign.seconds:.0f} s.",
        "",
        "| format | files | decoded | refused (4xx) | other exception | crash "
        f"| hang (> {SECONDS:g} s) | memory (> {MEMORY_BYTES >> 20} MiB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for format_ in sorted({format_ for format_, _ in campaign.outcomes}):
        counts: Counter[str] = Counter()
        for (name, outcome), count in campaign.outcomes.items():
            if name == format_:
                counts[_column(outcome)] += count
        totals += counts
        lines.append(_row(format_, counts))
    lines.append(_row("**all**", totals))
    refusals: Counter[str] = Counter()
    for (_, outcome), count in campaign.outcomes.items():
        if _column(outcome) == "refused":
            refusals[outcome] += count
    lines += [
        "",
        "Refusals: " + ", ".join(f"`{code}` {count:,}" for code, count in refusals.most_common()),
        "",
        f"Slowest file: {campaign.slowest[0]:.2f} s ({campaign.slowest[1]}). "
        f"Most memory: {campaign.largest[0] / 2**20:.0f} MiB ({campaign.largest[1]}).",
    ]
    for case, verdict in campaign.failures:
        lines += ["", f"- {verdict.failure}: input {case.number}, {case.seed_name}, {case.damage}"]
        lines += [f"  `{verdict.detail.strip().splitlines()[-1]}`"]
    return "\n".join(lines) + "\n"


def _column(outcome: str) -> str:
    if outcome in _FAILURES:
        return outcome
    return "decoded" if outcome in ("picture", "video") else "refused"


def _row(name: str, counts: Counter[str]) -> str:
    columns = ("decoded", "refused", *_FAILURES)
    figures = " | ".join(f"{counts[column]:,}" for column in columns)
    return f"| {name} | {counts.total():,} | {figures} |"
