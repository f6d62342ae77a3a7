"""`vitrine segment`: what a picture consists of, drawn over it and listed."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.output import console, fail, messages, print_json, print_table

_SHOWN = 20


def segment(
    file: Annotated[Path, typer.Argument(help="A picture.", exists=True, dir_okay=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Draw the segments over the picture and write it (.png) here."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Write the mask (.png) here: ids as grey levels.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(help="Layers of the encoder to use, of models that can use fewer; or auto."),
    ] = None,
    format: Annotated[
        str, typer.Option(help="Form of the masks with --json: rle or polygons.")
    ] = "rle",
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Divide a picture into segments.

    \b
    Examples:
      vitrine segment street.jpg -o segments.png
      vitrine segment scan.png --model gms-bus --mask lesion.png
      vitrine segment street.jpg --json --format polygons
    """
    for path in (output, mask):
        if path is not None and path.suffix.lower() != ".png":
            fail(f"{path}: the file's name must end in .png.", status=2)
    if json and mask is not None:
        fail("--mask and --json each ask for a form of the masks: choose one.", status=2)
    parameters: dict[str, Any] = {
        "model": model,
        "format": format if json else "png",
        "overlay": output is not None,
        "depth": depth,
    }
    with connected(url, api_key) as client:
        answer = client.segment(file, parameters)
    targets = {"overlay.png": output, "mask.png": mask}
    for drawn in answer.pop("files", ()):
        target = targets[drawn["name"]]
        if target is not None:
            target.write_bytes(base64.b64decode(drawn["data"].partition(",")[2]))
    if json:
        print_json(answer)
        return
    _show(answer)
    if output is not None:
        console.print(Text.assemble("Picture: ", (str(output), "bold green")))
    if answer.get("warning"):
        messages.print(answer["warning"], style="yellow", markup=False)


def _show(answer: dict[str, Any]) -> None:
    segments = answer["segments"]
    if segments:
        table = Table(box=None, pad_edge=False)
        for name in ("ID", "SEGMENT", "SCORE", "SHARE", "BOX"):
            table.add_column(name, justify="left" if name in ("SEGMENT", "BOX") else "right")
        for found in segments[:_SHOWN]:
            table.add_row(
                str(found["id"]),
                Text(found["label"]),
                f"{found['score']:.2f}",
                f"{found['share']:.1%}",
                ", ".join(map(str, found["box"])),
            )
        print_table(table)
        if len(segments) > _SHOWN:
            console.print(f"... and {len(segments) - _SHOWN} smaller ones; --json has them all")
    else:
        console.print("Nothing found.")
    depth = "" if answer["depth"] is None else f", {answer['depth']} layers of its encoder"
    console.print(f"model {answer['model']} ({answer['kind']}){depth}", style="dim", markup=False)
