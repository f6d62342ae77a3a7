"""`vitrine classify`: what is in a picture."""

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
from service.client import ApiError, Client

_AT_ONCE = 4
_BAR_CELLS = 30


def classify(
    files: Annotated[list[Path], typer.Argument(help="Pictures.", exists=True, dir_okay=False)],
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Labels to show.")] = 5,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Tell what is in pictures: labels with probabilities.

    \b
    Examples:
      vitrine classify photo.jpg
      vitrine classify *.jpg --top-k 1
      vitrine classify photo.jpg --json | jq '.[0].predictions[0].label'
    """
    with connected(url, api_key) as client:
        answers = _classified(client, files, {"model": model, "top_k": top_k})
    if json:
        print_json([answers[file] for file in files])
    else:
        for file in files:
            _show(file, answers[file])
        _warn(answers.values())
    if any("error" in answer for answer in answers.values()):
        raise typer.Exit(1)


def _classified(
    client: Client, files: list[Path], parameters: dict[str, Any]
) -> dict[Path, dict[str, Any]]:
    """Classify several files at once; a file that is refused has an `error` and stops no other."""
    answers: dict[Path, dict[str, Any]] = {}

    def one(file: Path) -> dict[str, Any]:
        try:
            return {"file": str(file)} | client.classify(file, parameters)
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


def _warn(answers: Any) -> None:
    for warning in dict.fromkeys(a.get("warning") for a in answers):
        if warning:
            messages.print(warning, style="yellow", markup=False)
