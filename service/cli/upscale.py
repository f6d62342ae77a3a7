"""`vitrine upscale`: a picture several times larger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.generate import FORMATS, write_files
from service.cli.output import console, fail, messages, print_json
from service.cli.progress import finished


def upscale(
    file: Annotated[Path, typer.Argument(help="A picture.", exists=True, dir_okay=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .png, .webp or .jpg.")
    ] = Path("upscaled.png"),
    model: Annotated[
        str | None,
        typer.Option(
            help="Model id; the model decides how much larger.", show_default="the task's default"
        ),
    ] = None,
    tiling: Annotated[
        Literal["context", "average"] | None,
        typer.Option(help="How large pictures are put together.", show_default="the model's"),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile in pixels.", show_default="the model's")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="Pixels around or between tiles.", show_default="the model's"),
    ] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make a picture larger, with the detail that a network adds. Ctrl-C cancels it.

    \b
    Examples:
      vitrine upscale photo.jpg -o large.png
      vitrine upscale scan.png -o large.webp --model drct-x4 --tile 128
    """
    if output.suffix.lower() not in FORMATS:
        fail(f"{output}: the file's name must end in {', '.join(FORMATS)}.", status=2)
    parameters = {
        "model": model,
        "format": FORMATS[output.suffix.lower()],
        "tiling": tiling,
        "tile": tile,
        "overlap": overlap,
    }
    with connected(url, api_key) as client:
        job = finished(client, client.upscale(file, parameters)["id"])
        write_files(client, job, output)
    answer = job["result"]["document"]
    if json:
        print_json(answer)
        return
    before, after = (
        f"{size['width']} x {size['height']}" for size in (answer["image"], answer["size"])
    )
    console.print(Text.assemble(f"{before} to ", (after, "bold"), f", {answer['scale']} times"))
    console.print(f"model {answer['model']}, tiles: {answer['tiles']}", style="dim", markup=False)
    console.print(Text.assemble("Picture: ", (str(output), "bold green")))
    if answer.get("warning"):
        messages.print(answer["warning"], style="yellow", markup=False)
