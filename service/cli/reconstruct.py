"""`vitrine reconstruct`: what a self-supervised model makes of the hidden parts of a picture."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.output import console, fail, messages, print_json


def reconstruct(
    file: Annotated[Path, typer.Argument(help="A picture.", exists=True, dir_okay=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Write the completed picture (.png) here.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Share of the picture to hide.", show_default="the model's own"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Which parts to hide.", show_default="the model's own")
    ] = None,
    seen: Annotated[
        Path | None, typer.Option(help="Write what the model was shown (.png) here.")
    ] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Hide parts of a picture and let a model complete it.

    \b
    Examples:
      vitrine reconstruct photo.jpg -o restored.png
      vitrine reconstruct x-ray.png -o restored.png --seen seen.png --share 0.9
    """
    for path in (output, seen):
        if path is not None and path.suffix.lower() != ".png":
            fail(f"{path}: the file's name must end in .png.", status=2)
    pictures = "restored" if seen is None else "both"
    parameters = {"model": model, "share": share, "seed": seed, "pictures": pictures}
    with connected(url, api_key) as client:
        answer = client.reconstruct(file, parameters)
    targets = {"restored.png": output, "seen.png": seen}
    for drawn in answer.pop("files"):
        target = targets[drawn["name"]]
        if target is not None:
            target.write_bytes(base64.b64decode(drawn["data"].partition(",")[2]))
    if json:
        print_json(answer)
        return
    quality = "exact" if answer["psnr"] is None else f"{answer['psnr']:.1f} dB"
    console.print(
        Text.assemble((f"{answer['hidden']:.0%}", "bold"), f" hidden, restored at {quality}")
    )
    console.print(f"model {answer['model']}, seed {answer['seed']}", style="dim", markup=False)
    console.print(Text.assemble("Picture: ", (str(output), "bold green")))
    if answer.get("warning"):
        messages.print(answer["warning"], style="yellow", markup=False)
