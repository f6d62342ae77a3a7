"""A small chart of a deepfake timeline for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def chart(
    timeline: Sequence[dict[str, Any]], threshold: float, width: int = 60, height: int = 6
) -> Text:
    """Return bars of the score (0..1) over time: red from `threshold` on, green below, a gap without a face.

    Each of the `width` columns shows the sampled frame that is nearest in time.
    """
    times = [moment["t"] for moment in timeline]
    start, end = times[0], times[-1]
    if end == start:
        columns = [timeline[0]["score"]] * min(width, 8)
    else:
        columns = [
            timeline[nearest(times, start + (end - start) * column / (width - 1))]["score"]
            for column in range(width)
        ]
    limit_row = min(height - 1, int(threshold * height))
    text = Text()
    for row in reversed(range(height)):
        label = {height - 1: "1.0", 0: "0.0", limit_row: f"{threshold:.1f}"}.get(row, "")
        text.append(f"{label:>4} ", style="dim")
        for score in columns:
            filled = 0.0 if score is None else min(1.0, max(0.0, score * height - row))
            if filled > 0:
                cell = _EIGHTHS[max(1, round(filled * 8))]
                text.append(cell, style="red" if score >= threshold else "green")
            else:
                text.append("┈" if row == limit_row else " ", style="dim")
        text.append("\n")
    first, last = clock(start), clock(end)
    axis = (
        first
        if end == start
        else f"{first}{' ' * max(1, len(columns) - len(first) - len(last))}{last}"
    )
    text.append(f"     {axis}", style="dim")
    return text


def nearest(times: Sequence[float], moment: float) -> int:
    """Return the position of the time that is nearest to `moment`."""
    return min(range(len(times)), key=lambda i: abs(times[i] - moment))


def clock(seconds: float) -> str:
    """Return minutes, seconds and tenths: 1:02.5."""
    tenths = round(seconds * 10)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"
