"""`vitrine explain`: what in a picture a classifier went by."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.output import console, fail, messages, print_json

_SHADES = " ░▒▓█"


def explain(
    file: Annotated[Path, typer.Argument(help="A picture.", exists=True, dir_okay=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the picture with the evidence over it (.png) here."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    class_index: Annotated[
        int | None,
        typer.Option("--class", help="Number of the label.", show_default="the most probable"),
    ] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show where in a picture the evidence for a label lies.

    \b
    Examples:
      vitrine explain photo.jpg
      vitrine explain photo.jpg -o overlay.png
      vitrine explain photo.jpg --class 207 --json | jq .evidence.heatmap
    """
    if output is not None and output.suffix.lower() != ".png":
        fail(f"{output}: the file's name must end in .png.", status=2)
    drawings = "none" if output is None else "overlay"
    parameters = {"model": model, "class_index": class_index, "drawings": drawings}
    with connected(url, api_key) as client:
        answer = client.explain(file, parameters)
        if output is not None:
            output.write_bytes(_overlay(answer))
    if json:
        print_json(answer)
        return
    evidence = answer["evidence"]
    score = f"{evidence['score']:.1%}"
    console.print(Text.assemble((evidence["label"], "bold green"), f"   {score}   ", str(file)))
    for row in shaded(evidence["heatmap"]):
        console.print(Text(row))
    console.print(f"model {answer['model']}, by {evidence['method']}", style="dim", markup=False)
    if output is not None:
        console.print(Text.assemble("Picture: ", (str(output), "bold green")))
    if answer.get("warning"):
        messages.print(answer["warning"], style="yellow", markup=False)


def shaded(heatmap: list[list[float]]) -> list[str]:
    """Return one line a row of the map, two shaded characters a value."""
    most = len(_SHADES) - 1
    return ["".join(2 * _SHADES[round(value * most)] for value in row) for row in heatmap]


def _overlay(answer: dict[str, Any]) -> bytes:
    """Take the drawing out of the answer, which need not be shown again, and return its bytes."""
    (drawing,) = answer.pop("files")
    return base64.b64decode(drawing["data"].partition(",")[2])
