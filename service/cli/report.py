"""Reports of a deepfake verdict: one self-contained HTML file, or the chart as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from service.cli.deepfake import QUALITY, VERDICTS
from service.cli.generate import write
from service.cli.timeline import clock
from service.client.client import media_type
from service.media.video import probe, sampled_frames
from service.settings import Settings

_CROP_PIXELS = 128
_COLOURS = {"fake": "#c0392b", "real": "#1e8449", "not_applicable": "#566573"}

# Number of the moment in the timeline, number of the face in it -> its crop.
Crops = dict[tuple[int, int], Image.Image]


def write_report(target: Path, source: Path, answer: dict[str, Any]) -> None:
    """Write the report of `answer` about the file `source`; the suffix of `target` decides the kind.

    Raises OSError, and VitrineError if `source` is no longer the file that was judged.
    """
    crops = dict(_crops(source, answer["timeline"]))
    if target.suffix.lower() == ".png":
        write(target, _png(source, answer, crops))
    else:
        write(target, _html(source, answer, crops).encode())


def _crops(
    source: Path, timeline: Sequence[dict[str, Any]]
) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    for position, image in _frames(source, timeline):
        for number, face in enumerate(timeline[position]["faces"]):
            crop = image.crop(tuple(face["box"]))
            yield (position, number), crop.resize((_CROP_PIXELS, _CROP_PIXELS))


def _frames(source: Path, timeline: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Image.Image]]:
    with_faces = {m["frame"]: position for position, m in enumerate(timeline) if m["faces"]}
    if not with_faces:
        return
    if media_type(source).startswith("video/"):
        limits = Settings().limits
        for frame in sampled_frames(source, probe(source, limits), sorted(with_faces), limits):
            if frame.index in with_faces:
                yield with_faces[frame.index], frame.image
    else:
        with Image.open(source) as image:
            yield 0, ImageOps.exif_transpose(image).convert("RGB")


def _html(source: Path, answer: dict[str, Any], crops: Crops) -> str:
    word = VERDICTS[answer["verdict"]][0]
    score = "" if answer["score"] is None else f"score {answer['score']:.3f}, "
    notes = [QUALITY.get(q, q) for q in answer["quality"]]
    if answer.get("warning"):
        notes.append(answer["warning"])
    sampling = answer["sampling"]
    facts = [
        ("File", source.name),
        ("Model", f"{answer['model']} ({answer['weights']} weights)"),
        *((f"Network {m['name']}", f"{m['score']:.3f}") for m in answer["models"]),
        ("Frames looked at", str(sampling["frames_decoded"])),
        ("Picture size", f"{sampling['width']} x {sampling['height']}"),
    ]
    if sampling.get("duration_s") is not None:
        facts.append(
            ("Length", f"{sampling['duration_s']:.1f} s at {sampling['fps']:.1f} frames/s")
        )
    return _PAGE.format(
        title=escape(f"{word}: {source.name}"),
        colour=_COLOURS[answer["verdict"]],
        word=word,
        summary=f"{score}fake from {answer['threshold']:.2f}",
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        chart=_svg(answer) if len(answer["timeline"]) > 1 else "",
        facts="".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts),
        rows="".join(
            _row(position, moment, answer["threshold"], crops)
            for position, moment in enumerate(answer["timeline"])
        ),
    )


def _row(position: int, moment: dict[str, Any], threshold: float, crops: Crops) -> str:
    cells = []
    for number, face in enumerate(moment["faces"]):
        crop = crops.get((position, number))
        picture = ""
        if crop is not None:
            buffer = io.BytesIO()
            crop.save(buffer, "JPEG", quality=85)
            data = base64.b64encode(buffer.getvalue()).decode()
            picture = f'<img alt="face {face["track_id"]}" src="data:image/jpeg;base64,{data}">'
        kind = "fake" if face["score"] >= threshold else "real"
        cells.append(
            f"<figure>{picture}<figcaption>face {face['track_id']} "
            f'<b class="{kind}">{face["score"]:.2f}</b></figcaption></figure>'
        )
    score = "-" if moment["score"] is None else f"{moment['score']:.3f}"
    faces = "".join(cells) or "no face"
    return (
        f"<tr><td>{clock(moment['t'])}</td><td>{moment['frame']}</td>"
        f"<td>{score}</td><td>{faces}</td></tr>"
    )


def _svg(answer: dict[str, Any]) -> str:
    """Return the timeline as an inline SVG, 720 by 200 units."""
    timeline, threshold = answer["timeline"], answer["threshold"]
    start, end = float(timeline[0]["t"]), float(timeline[-1]["t"])
    span = max(1e-9, end - start)

    def x(seconds: float) -> float:
        return round(40 + 660 * (seconds - start) / span, 1)

    def y(value: float) -> float:
        return round(170 - 150 * value, 1)

    seen = [m for m in timeline if m["score"] is not None]
    line = " ".join(f"{x(m['t'])},{y(m['score'])}" for m in seen)
    bands = "".join(
        f'<rect class="band" x="{x(s["start_s"]) - 3}" y="20" '
        f'width="{x(s["end_s"]) - x(s["start_s"]) + 6:.1f}" height="150"/>'
        for s in answer["segments"]
    )
    dots = "".join(
        f'<circle class="{"fake" if m["score"] >= threshold else "real"}" cx="{x(m["t"])}" '
        f'cy="{y(m["score"])}" r="4"><title>{clock(m["t"])}: {m["score"]:.3f}</title></circle>'
        for m in seen
    )
    labels = "".join(
        f'<text x="32" y="{y(v) + 4}" text-anchor="end">{v:g}</text>' for v in (0, 0.5, 1)
    )
    return (
        f'<svg viewBox="0 0 720 200" role="img" aria-label="score over time">{bands}'
        f'<line class="axis" x1="40" y1="{y(0)}" x2="700" y2="{y(0)}"/>'
        f'<line class="limit" x1="40" y1="{y(threshold)}" x2="700" y2="{y(threshold)}"/>'
        f'<polyline points="{line}"/>{dots}{labels}'
        f'<text x="40" y="192">{clock(start)}</text>'
        f'<text x="700" y="192" text-anchor="end">{clock(end)}</text></svg>'
    )


def _png(source: Path, answer: dict[str, Any], crops: Crops) -> bytes:
    """Return the chart, with a strip of up to eight faces below it, as a PNG of 1200 by 675 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    shown = list(crops.items())[:: max(1, -(-len(crops) // 8))]
    grid = figure.add_gridspec(2, max(1, len(shown)), height_ratios=(3, 1 if shown else 0.01))
    axes = figure.add_subplot(grid[0, :])
    seen = [m for m in answer["timeline"] if m["score"] is not None]
    for segment in answer["segments"]:
        axes.axvspan(segment["start_s"], segment["end_s"], color="#c0392b", alpha=0.12)
    axes.plot([m["t"] for m in seen], [m["score"] for m in seen], marker="o", color="#34495e")
    axes.axhline(answer["threshold"], linestyle="--", color="#c0392b", linewidth=1)
    axes.set(ylim=(-0.03, 1.03), xlabel="seconds", ylabel="probability of manipulation")
    word = VERDICTS[answer["verdict"]][0]
    score = "" if answer["score"] is None else f"  {answer['score']:.2f}"
    axes.set_title(f"{word}{score}   {source.name}", color=_COLOURS[answer["verdict"]])
    for column, ((position, number), crop) in enumerate(shown):
        moment = answer["timeline"][position]
        strip = figure.add_subplot(grid[1, column])
        strip.imshow(crop)
        strip.set_axis_off()
        strip.set_title(f"{clock(moment['t'])}  {moment['faces'][number]['score']:.2f}", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1b2631; --paper: #fff; --soft: #8b98a5; --line: #d5dbe1 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8edf2; --paper: #14191f; --soft: #8b98a5; --line: #303a44 }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 780px; margin: 2.5rem auto; padding: 0 1rem }}
h1 span {{ background: {colour}; color: #fff; padding: .1em .5em; border-radius: .25em }}
h1 small {{ font-size: 1rem; font-weight: normal; color: var(--soft); margin-left: .8em }}
.note {{ border-left: 4px solid #d4ac0d; padding-left: .8em }}
table {{ border-collapse: collapse; width: 100%; margin: 1.2rem 0 }}
th, td {{ text-align: left; padding: .35em .8em .35em 0; border-bottom: 1px solid var(--line);
  vertical-align: top }}
figure {{ display: inline-block; margin: 0 .6em 0 0 }}
figcaption {{ font-size: .8rem; color: var(--soft) }}
img {{ width: 96px; height: 96px; border-radius: 6px; display: block }}
svg {{ width: 100%; font-size: 12px }} svg text {{ fill: var(--soft) }}
polyline {{ fill: none; stroke: var(--soft); stroke-width: 2 }}
.axis {{ stroke: var(--line) }} .limit {{ stroke: #c0392b; stroke-dasharray: 5 4 }}
.band {{ fill: #c0392b; opacity: .13 }}
circle.fake {{ fill: #c0392b }} circle.real {{ fill: #1e8449 }}
b.fake {{ color: #c0392b }} b.real {{ color: #1e8449 }}
</style></head><body>
<h1><span>{word}</span><small>{summary}</small></h1>
{notes}{chart}
<table>{facts}</table>
<h2>Frames</h2>
<table><tr><th>Time</th><th>Frame</th><th>Score</th><th>Faces</th></tr>{rows}</table>
</body></html>
"""
