"""`vitrine classify`: what is in a picture, or happens in a video."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.output import console, messages, print_json
from service.cli.progress import bar
from service.cli.timeline import clock
from service.client import ApiError, Client
from service.client.client import media_type

_AT_ONCE = 4
_BAR_CELLS = 30


def classify(
    files: Annotated[
        list[Path], typer.Argument(help="Pictures or videos.", exists=True, dir_okay=False)
    ],
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Labels to show.")] = 5,
    clips: Annotated[
        int | None, typer.Option(help="Clips of a video to look at.", show_default="1")
    ] = None,
    crops: Annotated[
        int | None, typer.Option(help="Crops of a video's frames: 1 or 3.", show_default="1")
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            help="Seconds of a video for each entry of its timeline.",
            show_default="the whole video, up to 30 seconds",
        ),
    ] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Tell what is in pictures and videos: labels with probabilities.

    \b
    Examples:
      vitrine classify photo.jpg
      vitrine classify *.jpg --top-k 1
      vitrine classify match.mp4 --window 5 --clips 2
      vitrine classify photo.jpg --json | jq '.[0].predictions[0].label'
    """
    with connected(url, api_key) as client:
        answers = _classified(
            client,
            files,
            {"model": model, "top_k": top_k},
            {"clips": clips, "crops": crops, "window_s": window},
        )
    if json:
        print_json([answers[file] for file in files])
    else:
        for file in files:
            _show(file, answers[file])
        _warn(answers.values())
    if any("error" in answer for answer in answers.values()):
        raise typer.Exit(1)


def _classified(
    client: Client, files: list[Path], parameters: dict[str, Any], of_videos: dict[str, Any]
) -> dict[Path, dict[str, Any]]:
    """Classify several files at once; a file that is refused has an `error` and stops no other.

    Videos are jobs: they may take longer than anyone waits for one answer.
    """
    answers: dict[Path, dict[str, Any]] = {}

    def one(file: Path) -> dict[str, Any]:
        try:
            if media_type(file).startswith("video/"):
                answer = _video(client, file, parameters | of_videos)
            else:
                answer = client.classify(file, parameters)
            return {"file": str(file)} | answer
        except ApiError as error:
            reason = {"code": error.code, "message": error.message}
            return {"file": str(file), "error": reason}

    with bar() as display, ThreadPoolExecutor(_AT_ONCE) as pool:
        shown = display.add_task("classifying", total=len(files), step="")
        pending = {pool.submit(one, file): file for file in files}
        try:
            for future in as_completed(pending):
                answers[pending[future]] = future.result()
                display.update(shown, advance=1, step=f"{len(answers)}/{len(files)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return answers


def _video(client: Client, file: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Classify a video as a job and return its answer, or its error in an answer's place."""
    job = client.classify(file, parameters | {"mode": "async"})
    for state in client.follow(job["id"]):
        job = state
    if job["state"] == "succeeded":
        answer: dict[str, Any] = job["result"]["document"]
        return answer
    error = job.get("error") or {}
    reason = {"code": job["state"], "message": f"The job is {job['state']}."}
    return {"error": reason | {name: error[name] for name in reason if name in error}}


def _show(file: Path, answer: dict[str, Any]) -> None:
    if "error" in answer:
        reason = answer["error"]
        messages.print(f"{file}: {reason['message']} [{reason['code']}]", style="red", markup=False)
        return
    console.print(Text.assemble((str(file), "bold"), (f"   {answer['model']}", "dim")))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, max_width=40)
    table.add_column(justify="right")
    table.add_column()
    for rank, prediction in enumerate(answer["predictions"]):
        score = prediction["score"]
        cells = "█" * round(score * _BAR_CELLS) or "▏"
        table.add_row(
            Text(prediction["label"], style="bold" if rank == 0 else ""),
            f"{score:6.1%}",
            Text(cells, style="green" if rank == 0 else "dim green"),
        )
    console.print(table, "")
    if len(answer.get("timeline", ())) > 1:
        console.print(_timeline(answer["timeline"]), "")


def _timeline(windows: list[dict[str, Any]]) -> Table:
    """Return the best label of every window of a video."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("SEEN", "LABEL", "SCORE"):
        table.add_column(heading, no_wrap=True)
    for window in windows:
        first = window["predictions"][0]
        table.add_row(
            f"{clock(window['start_s'])} - {clock(window['end_s'])}",
            Text(first["label"]),
            f"{first['score']:.1%}",
        )
    return table


def _warn(answers: Any) -> None:
    for warning in dict.fromkeys(a.get("warning") for a in answers):
        if warning:
            messages.print(warning, style="yellow", markup=False)
