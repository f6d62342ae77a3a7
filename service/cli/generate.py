"""`vitrine generate`: pictures from words."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.output import console, fail, messages, print_json
from service.cli.progress import finished
from service.client import Client

generate = typer.Typer(no_args_is_help=True)

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


@generate.callback()
def _group() -> None:
    """Make pictures."""


@generate.command()
def image(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .png, .webp or .jpg.")
    ] = Path("out.png"),
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps.", show_default="the model's")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="How closely to follow the prompt.", show_default="the model's"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed gives the same picture.", show_default="random"),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Number of pictures.", min=1)] = 1,
    size: Annotated[
        str | None,
        typer.Option(help="Pixels, as 512 or 512x384.", show_default="the model's"),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the pictures, or print the job.")
    ] = True,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make a picture from a prompt. Ctrl-C cancels the job.

    \b
    Examples:
      vitrine generate image "a red circle left of a blue square" -o out.png
      vitrine generate image "a green star" -n 4 --seed 7 --steps 20 -o star.png
      vitrine generate image "a yellow cross" --no-wait    then: vitrine jobs watch ID
    """
    if output.suffix.lower() not in FORMATS:
        fail(f"{output}: the file's name must end in {', '.join(FORMATS)}.", status=2)
    width, height = _size(size)
    parameters = {
        "prompt": prompt,
        "model": model,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "n": n,
        "width": width,
        "height": height,
        "format": FORMATS[output.suffix.lower()],
    }
    with connected(url, api_key) as client:
        job = client.generate_image(parameters)
        if not wait:
            _print_queued(job, json)
            return
        job = finished(client, job["id"])
        paths = write_files(client, job, output)
    if json:
        print_json(job | {"written": [str(path) for path in paths]})
        return
    document = job["result"]["document"]
    for path in paths:
        console.print(f"[bold green]{path}[/]")
    seeds = document.get("seeds") or [document.get("seed")]
    console.print(f"model {document['model']}, seed {', '.join(map(str, seeds))}", style="dim")
    if document.get("warning"):
        messages.print(document["warning"], style="yellow", markup=False)


def write_files(client: Client, job: dict[str, Any], output: Path) -> list[Path]:
    """Write every file of a job's result: to `output`, or numbered beside it; return the paths.

    A file is complete or absent. Raises ApiError, OSError.
    """
    names = [file["name"] for file in job["result"]["files"]]
    paths = []
    for number, name in enumerate(names, 1):
        path = output
        if len(names) > 1:
            path = output.with_name(f"{output.stem}-{number}{output.suffix}")
        write(path, client.result(job["id"], name)[1])
        paths.append(path)
    return paths


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _print_queued(job: dict[str, Any], json: bool) -> None:
    if json:
        print_json(job)
    else:
        console.print(f"Job [bold]{job['id']}[/] is {job['state']}.")
        console.print(f"  vitrine jobs watch {job['id']}", style="dim")
        console.print(f"  vitrine jobs result {job['id']} -o out.png", style="dim")


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    matched = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text)
    if matched is None:
        fail(f"--size {text}: give pixels as 512 or 512x384 (width x height).", status=2)
    return int(matched[1]), int(matched[2] or matched[1])
