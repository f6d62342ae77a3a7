"""The commands of `python -m models`, which `vitrine` passes on to this side of the fence.

torch is imported by the commands that need it, so that help and small commands are there at once.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.table import Table

from models.console import (
    Refused,
    agreed,
    console,
    plain_errors,
    progress_bars,
    report,
    report_runtime,
)
from service.cli.delegate import PROGRAM
from service.settings import Settings
from service.triton.server import trace_options

if TYPE_CHECKING:
    from models.architecture import Architecture

app = typer.Typer(
    name="models",
    help="Weights and the model repository: what there is, what is served, and how to bring more.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
Repository = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        help="The Triton model repository. Without it: $VITRINE_DATA_DIR/repository.",
        file_okay=False,
        show_default=False,
    ),
]
Hub = Annotated[
    str | None,
    typer.Option(
        help="Address of the Hugging Face hub or a mirror of it. Without it: $HF_ENDPOINT.",
        show_default=False,
    ),
]
AcceptLicence = Annotated[
    bool, typer.Option("--accept-licence", help="Agree to weights for non-commercial use only.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace a model of the same name.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes the GPU where there is one.")
]
Runtime = Annotated[
    Literal["auto", "torch", "compile", "openvino"],
    typer.Option(
        help="What runs the network: auto takes the fastest that agrees with eager float32."
    ),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="What it computes in.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="ID|SLUG[:VARIANT]", show_default=False)],
    repository: Repository = None,
    hub_url: Hub = None,
    accept_licence: AcceptLicence = False,
    replace: Replace = False,
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
) -> None:
    """Download published weights and serve them; a running service needs no restart.

    An interrupted download goes on where it stopped when the command is given again.

    - `vitrine pull convnext` (the first variant)
    - `vitrine pull convnext:base-22k-1k-384`
    - `vitrine pull genconvit:both --accept-licence`
    """
    with plain_errors():
        from models.weights.pull import published, pull

        accepted = accept_licence or agreed(*published(name))
        with progress_bars() as watch:
            installed = pull(
                name,
                _repository(repository),
                hub=hub_url,
                accept_licence=accepted,
                replace=replace,
                runtime=runtime,
                precision=precision,
                device=device,
                watch=watch,
            )
        report(installed)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The model's id in the API.", show_default=False)],
    architecture: Annotated[
        str,
        typer.Option(
            metavar="SLUG[:VARIANT]",
            help="Whose network it is; without a variant, the one that fits is found.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="File as the authors' code saves it (.pth, .pt, .bin, .safetensors). Give it several "
            "times for a network in several files.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Class names: one a line, a JSON list, or JSON {index: name}.", show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="Read the weights under this key of the file, such as model_ema.",
            show_default=False,
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A further part of the network, such as vae=my-vae.safetensors.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        Literal["keep", "float32", "bfloat16", "float16"],
        typer.Option(help="How to store the weights; keep leaves them as the file has them."),
    ] = "keep",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    default: Annotated[
        bool, typer.Option("--default", help="Make it the default model of its task.")
    ] = False,
    repository: Repository = None,
    hub_url: Hub = None,
    replace: Replace = False,
    device: Device = "auto",
) -> None:
    """Serve your own checkpoint; a running service needs no restart.

    - `vitrine add flowers --architecture convnext:tiny-1k-224 --checkpoint best.pth --labels flowers.txt`
    - `vitrine add flowers --architecture convnext --checkpoint run.ckpt --key model_ema --replace --default`
    """
    with plain_errors():
        parts = dict(_named_file(given) for given in part or ())
        from models.weights.add import add
        from models.weights.labels import read_labels

        with progress_bars() as watch:
            installed = add(
                name,
                architecture,
                checkpoint,
                _repository(repository),
                labels=None if labels is None else read_labels(labels),
                key=key,
                parts=parts,
                storage=storage,
                runtime=runtime,
                precision=precision,
                default=default,
                replace=replace,
                device=device,
                hub=hub_url,
                watch=watch,
            )
        report(installed)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    repository: Repository = None,
) -> None:
    """Take a model out of the repository, with its weights.

    - `vitrine remove flowers`
    """
    with plain_errors(KeyError):
        from models.repository import remove_entry

        remove_entry(_repository(repository), name)
        console.print(f"removed {name}", highlight=False)


@app.command("runtime")
def choose_runtime(
    name: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    repository: Repository = None,
    device: Device = "auto",
) -> None:
    """Choose anew what runs a model of the repository; it counts from the model's next load on.

    - `vitrine runtime convnext-demo --runtime torch --precision float32`
    - `vitrine runtime flowers`, the fastest on this machine that agrees with eager float32
    """
    with plain_errors(KeyError):
        from models.repository import choose_runtime

        card = choose_runtime(_repository(repository), name, device, runtime, precision)
        report_runtime(card)


@app.command("list")
def list_architectures(as_json: AsJson = False) -> None:
    """Show every architecture with its variants: what `pull` and `add` take.

    - `python -m models list`
    - `python -m models list --json`
    """
    with plain_errors():
        from models.registry import architectures

        known = architectures().values()
        if as_json:
            print(json.dumps([_described(a) for a in known], indent=2))
            return
        table = Table("variant", "weights", "licence of the weights", "paper")
        table.columns[0].no_wrap = True
        for a in known:
            for v in a.variants.values():
                terms = a.terms(v)
                licence = terms.weights + ("" if terms.commercial else ", non-commercial")
                weights = "published" if v.sources else "demo" if v.demo else "your own"
                table.add_row(f"{a.slug}:{v.name}", weights, licence, a.paper.title)
            table.add_section()
        console.print(table)


@app.command("repository")
def write_repository(
    repository: Repository = None,
    device: Device = "auto",
    models: Annotated[
        list[str] | None,
        typer.Option(help="A model to start with; give it several times.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the model repository up to date and show the models to start with.

    - `vitrine repository --device cpu --json`
    - `vitrine repository --models convnext-demo --models mtcnn`
    """
    with plain_errors(KeyError):
        from models.repository import build, describe

        cards = build(_repository(repository), device, models or None)
        if as_json:
            print(describe(cards))
            return
        table = Table("model", "task", "title", "weights", "default")
        for card in cards:
            table.add_row(
                card.id, card.task, card.title, card.weights.kind, "yes" if card.default else ""
            )
        console.print(table)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    repository: Repository = None,
    device: Device = "auto",
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="A model to load before the server answers; give it several times. "
            "Without it: $VITRINE_TRITON__REQUIRED_MODELS, or else the default of every task.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Bring the model repository up to date and become the `tritonserver` on the PATH.

    The Triton image runs this. Unknown options go to `tritonserver` as they are.

    - `python -m models serve --device cuda`
    - `python -m models serve --models convnext-demo --log-verbose=1 --grpc-port=9001`
    """
    with plain_errors(KeyError):
        from models.server import serve

        settings = _settings()
        wanted = models or settings.triton.required_models
        options = (*trace_options(settings.tracing), *context.args)
        serve(_repository(repository), device, wanted or None, options)


@app.command("train-demo")
def train_demo(
    model: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for the weights. Without it: where the project keeps what it ships.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Fewer steps, for a trial.", show_default=False)
    ] = None,
) -> None:
    """Train a demo model from scratch on drawn pictures and print its held-out score.

    - `vitrine train-demo convnext-demo`
    - `vitrine train-demo micro-dit-demo --steps 20 -o /tmp/trial`
    """
    with plain_errors():
        import torch

        from models.demo.train import train
        from models.shipped import WEIGHTS

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        train(model, output or WEIGHTS / model, device, seed, steps)


@app.command()
def sample(
    task: Annotated[
        Literal["classify", "deepfake", "generate", "segment", "upscale", "video"],
        typer.Argument(show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", dir_okay=False, show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Another number, another input.")] = 0,
    real: Annotated[bool, typer.Option("--real", help="deepfake: an untouched clip.")] = False,
) -> None:
    """Write an input to try, drawn on the spot, and say what the right answer is.

    - `vitrine sample classify -o shape.png`
    - `vitrine sample deepfake -o clip.mp4 --real`
    - `vitrine sample generate -o prompt.txt`
    - `vitrine sample segment -o scene.png`
    - `vitrine sample upscale -o small.png`
    - `vitrine sample video -o motion.mp4`, for `vitrine classify`
    """
    with plain_errors(ValueError):
        from models.demo.sample import write_sample

        shown = write_sample(task, output, seed, manipulated=not real)
        console.print(f"{output}: {shown}", highlight=False, soft_wrap=True)


@app.command()
def papers(
    write: Annotated[
        Path | None,
        typer.Option(
            help="Put the table between the markers of this document.",
            dir_okay=False,
            exists=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the status of the 52 papers as Markdown.

    - `python -m models papers`
    - `python -m models papers --write README.md`
    """
    with plain_errors(ValueError):
        from models.papers import table
        from models.papers import write as write_table

        if write is None:
            print(table(), end="")
        else:
            write_table(write)


def main() -> None:
    # What a command had begun is cleared away after a SIGTERM as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name=os.environ.get(PROGRAM, "python -m models"))


def _repository(given: Path | None) -> Path:
    return (given or _settings().repository).expanduser().absolute()


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        fault = error.errors()[0]
        name = "__".join(map(str, fault["loc"])).upper()
        raise Refused(f"VITRINE_{name}: {fault['msg']}") from error


def _named_file(given: str) -> tuple[str, Path]:
    name, equals, path = given.partition("=")
    if not (name and equals and path) or "/" in name:
        raise Refused(f"--part {given}: say NAME=FILE")
    return name, Path(path)


def _described(a: Architecture) -> dict[str, Any]:
    return {
        "slug": a.slug,
        "title": a.title,
        "task": a.task,
        "paper": a.paper.model_dump(),
        "origin": a.origin,
        "licence": a.licence.model_dump(),
        "variants": [
            {
                "name": v.name,
                "demo": v.demo,
                "default": v.default,
                "licence": a.terms(v).model_dump(),
                "labels": len(v.labels),
                "sources": [source.url for source in v.sources],
            }
            for v in a.variants.values()
        ],
    }
