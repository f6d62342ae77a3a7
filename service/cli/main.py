"""The `vitrine` command."""

from __future__ import annotations

import typer

from service.cli.classify import classify
from service.cli.deepfake import deepfake
from service.cli.delegate import delegate
from service.cli.detect import detect
from service.cli.doctor import doctor
from service.cli.embed import embed
from service.cli.explain import explain
from service.cli.generate import generate
from service.cli.jobs import jobs
from service.cli.keys import keys
from service.cli.models import models
from service.cli.reconstruct import reconstruct
from service.cli.segment import segment
from service.cli.up import up
from service.cli.upscale import upscale

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", add_completion=False)


@app.callback()
def vitrine() -> None:
    """The networks of 52 vision papers behind one REST API.

    \b
    Start here:
      vitrine doctor     is this machine fit?
      vitrine up         start the service; then, in another terminal:
      vitrine generate image "a red circle left of a blue square" -o out.png
      vitrine classify out.png
    """


app.command()(up)
app.command()(doctor)
app.command()(classify)
app.command()(deepfake)
app.command()(detect)
app.command()(embed)
app.command()(explain)
app.command()(reconstruct)
app.command()(segment)
app.command()(upscale)
app.add_typer(generate, name="generate")
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
delegate(app)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
