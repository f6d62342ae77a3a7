"""`vitrine deepfake`: were the faces in this video manipulated, and when?"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.output import console, fail, messages, print_json
from service.cli.progress import finished
from service.cli.timeline import chart, clock
from service.client.client import media_type

VERDICTS = {
    "fake": ("FAKE", "bold white on red"),
    "real": ("REAL", "bold white on green"),
    "not_applicable": ("NO VERDICT", "bold white on bright_black"),
}
QUALITY = {
    "no_face": "No face was found, so there is nothing to judge.",
    "few_frames": "A face is seen in few frames; the score rests on little.",
    "too_short": "The video is shorter than a second.",
    "small_face": "The faces are small; traces of manipulation may be lost.",
    "blurry": "The faces are blurred; traces of manipulation may be lost.",
}


def deepfake(
    file: Annotated[
        Path, typer.Argument(help="A video or a picture.", exists=True, dir_okay=False)
    ],
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of a video to look at.", show_default="15")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the network's noise.", show_default="0")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a report: .html (one file, with the faces) or .png (the chart)."),
    ] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Judge the faces in a video or picture: verdict, score over time, people, warnings.

    \b
    Examples:
      vitrine deepfake clip.mp4
      vitrine deepfake clip.mp4 --frames 40 --report clip.html
      vitrine deepfake portrait.jpg --json
    """
    if report is not None and report.suffix.lower() not in (".html", ".png"):
        fail(f"{report}: a report's name must end in .html or .png.", status=2)
    if report is not None and report.suffix.lower() == ".png" and not find_spec("matplotlib"):
        fail("A chart as PNG needs matplotlib: pip install 'vitrine[report]'.")
    parameters = {"model": model, "frames": frames, "seed": seed}
    with connected(url, api_key) as client:
        if media_type(file).startswith("video/"):
            job = client.deepfake(file, parameters | {"mode": "async"})
            answer = finished(client, job["id"])["result"]["document"]
        else:
            answer = client.deepfake(file, parameters)
    if report is not None:
        from service.cli.report import write_report

        write_report(report, file, answer)
    if json:
        print_json(answer)
        return
    _show(file, answer)
    if report is not None:
        console.print(f"Report: [bold green]{report}[/]")


def _show(file: Path, answer: dict[str, Any]) -> None:
    word, style = VERDICTS[answer["verdict"]]
    score = answer["score"]
    line = Text.assemble((f" {word} ", style), f"  {file}")
    if score is not None:
        line.append(f"   score {score:.2f}, fake from {answer['threshold']:.2f}", style="dim")
    console.print(line, "")
    timeline = answer["timeline"]
    if score is not None and len(timeline) > 1:
        width = max(20, min(72, console.width - 8))
        console.print(chart(timeline, answer["threshold"], width), "")
    if answer["faces"]:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for heading in ("FACE", "SEEN", "FRAMES", "SCORE"):
            table.add_column(heading, no_wrap=True)
        for face in answer["faces"]:
            suspicious = face["score"] >= answer["threshold"]
            table.add_row(
                str(face["track_id"]),
                f"{clock(face['first_s'])} - {clock(face['last_s'])}",
                str(face["frames"]),
                Text(f"{face['score']:.2f}", style="red" if suspicious else "green"),
            )
        console.print(table, "")
    for segment in answer["segments"] if len(timeline) > 1 else ():
        console.print(
            f"Suspicious from {clock(segment['start_s'])} to {clock(segment['end_s'])}, "
            f"score {segment['score']:.2f}",
            style="red",
        )
    members = ", ".join(f"{m['name']} {m['score']:.2f}" for m in answer["models"])
    console.print(f"model {answer['model']}" + (f" ({members})" if members else ""), style="dim")
    for quality in answer["quality"]:
        messages.print(QUALITY.get(quality, quality), style="yellow", markup=False)
    if answer.get("warning"):
        messages.print(answer["warning"], style="yellow", markup=False)
