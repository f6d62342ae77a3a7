"""`python -m deploy.images`: build and try the images where there is no Docker (Debian, as root)."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CalledProcessError
from typing import Annotated

import typer

from deploy.images import stand_in
from deploy.images.build import base, build, image
from deploy.images.buildah import Missing, buildah, exists, require, root_of
from deploy.images.sizes import summary, table
from deploy.images.trial import Failed, trial

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.command("stand-in")
def make_stand_in(
    mirror: Annotated[str, typer.Option(help="Debian mirror.")] = "http://deb.debian.org/debian",
    again: Annotated[bool, typer.Option("--again", help="Also if there is one already.")] = False,
) -> None:
    """Make stand-ins for the base images: Python's from a Debian mirror, Triton's from its wheel."""
    python, triton = base("PYTHON_IMAGE"), base("TRITON_IMAGE")
    if again or not exists(python):
        stand_in.make(python, mirror)
    if again or not exists(triton):
        stand_in.make_triton(triton, python)
    typer.echo(f"{python}\n{triton}")


@app.command("build")
def build_targets(
    targets: Annotated[list[str], typer.Argument(help="Targets: gateway, worker, triton ...")],
    argument: Annotated[
        list[str] | None, typer.Option("--build-arg", help="NAME=VALUE for the Dockerfile.")
    ] = None,
) -> None:
    """Build targets of the Dockerfile."""
    given = dict(pair.split("=", 1) for pair in argument or ())
    for target in targets:
        typer.echo(build(target, given))


@app.command("try")
def try_images(
    record: Annotated[
        Path | None, typer.Option(help="Write sizes and times as NAME.json and NAME.md.")
    ] = None,
) -> None:
    """Run the images together, read-only and without rights; weigh them."""
    targets = [target for target in ("gateway", "worker", "triton") if exists(image(target))]
    try:
        seconds = trial("triton" in targets, typer.echo)
    except Failed as failure:
        raise SystemExit(f"error: {failure}") from None
    sizes = {target: summary(image(target)) for target in ("gateway", "worker")}
    typer.echo(document := table(sizes, seconds))
    if record is not None:
        record.with_suffix(".json").write_text(
            json.dumps({"sizes": sizes, "seconds": seconds}, indent=1) + "\n"
        )
        record.with_suffix(".md").write_text(document)


@app.command()
def sbom(
    target: Annotated[str, typer.Argument(help="service-sbom or triton-sbom.")] = "service-sbom",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder.")] = Path("sbom"),
) -> None:
    """Write the bill of materials (CycloneDX) of an image's Python packages."""
    output.mkdir(parents=True, exist_ok=True)
    with root_of(build(target, {})) as root:
        for document in root.glob("*.cdx.json"):
            (output / document.name).write_bytes(document.read_bytes())
            typer.echo(output / document.name)


@app.command()
def remove() -> None:
    """Remove the images that were built here, with all their layers, and the stand-in."""
    for name in (
        *map(image, ("gateway", "worker", "triton")),
        base("PYTHON_IMAGE"),
        base("TRITON_IMAGE"),
    ):
        if exists(name):
            buildah("rmi", name)
    buildah("rmi", "--prune", "--force")


def main() -> None:
    """Run a command; say in one line what is missing, or which step failed."""
    try:
        require()
        app()
    except Missing as missing:
        raise SystemExit(f"error: {missing}") from None
    except CalledProcessError as failure:
        raise SystemExit(f"error: status {failure.returncode}: {failure.cmd[0]} failed") from None


if __name__ == "__main__":
    main()
