"""`vitrine detect`: the objects in a picture, in the terminal and drawn over it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.output import console, fail, messages, print_json, print_table


def detect(
    file: Annotated[Path, typer.Argument(help="A picture.", exists=True, dir_okay=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the picture with what was found (.png) here."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score to exceed, 0 to 1.", show_default="the model's own"),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--max", help="How many at most.", show_default="the model's own"),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Labels to look for, separated by commas.")
    ] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Find the objects in a picture.

    \b
    Examples:
      vitrine detect street.jpg -o found.png
      vitrine detect street.jpg --classes person,dog --threshold 0.6
      vitrine detect street.jpg --json | jq '.detections[].label'
    """
    if output is not None and output.suffix.lower() != ".png":
        fail(f"{output}: the file's name must end in .png.", status=2)
    parameters = {
        "model": model,
        "threshold": threshold,
        "max_detections": most,
        "classes": classes,
        # Masks are shown in the drawing and in JSON only.
        "masks": str(output is not None or json).lower(),
        "overlay": str(output is not None).lower(),
    }
    with connected(url, api_key) as client:
        answer = client.detect(file, parameters)
    if output is not None:
        (drawing,) = answer.pop("files")
        output.write_bytes(base64.b64decode(drawing["data"].partition(",")[2]))
    if json:
        print_json(answer)
        return
    if answer["detections"]:
        print_table(_table(answer["detections"]))
    else:
        console.print(f"Nothing scores above {answer['threshold']:g}.")
    console.print(f"model {answer['model']}", style="dim", markup=False)
    if output is not None:
        console.print(Text.assemble("Picture: ", (str(output), "bold green")))
    if answer.get("warning"):
        messages.print(answer["warning"], style="yellow", markup=False)


def _table(detections: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("LABEL")
    table.add_column("SCORE", justify="right")
    table.add_column("BOX (left, top, right, bottom)")
    for one in detections:
        box = ", ".join(f"{edge:.0f}" for edge in one["box"])
        table.add_row(Text(one["label"], "bold green"), f"{one['score']:.2f}", box)
    return table
