"""Commands of the networks' side (`python -m models`), which needs torch and is not imported here."""

from __future__ import annotations

import importlib.util
import os

import typer

from service.cli.output import fail
from service.supervisor.parts import python

# Names the variable that tells the other side what its user has typed, for its usage lines.
PROGRAM = "VITRINE_PROGRAM"
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

COMMANDS = {
    "sample": "Write an input to try: a picture, a clip or a prompt.",
    "pull": "Download a model's published weights and serve them.",
    "add": "Serve your own checkpoint.",
    "runtime": "Choose what runs a model: torch, compile or OpenVINO.",
    "remove": "Take a model out of the repository.",
    "train-demo": "Train a model's demo weights on drawn data.",
    "repository": "Write the Triton model repository.",
}


def delegate(app: typer.Typer) -> None:
    """Add the delegated commands to `app`: all arguments go through, `--help` is the other side's."""
    for name, about in COMMANDS.items():
        app.command(name, help=about, context_settings=_PASS_ON, add_help_option=False)(
            _command(name)
        )


def _command(name: str):  # type: ignore[no-untyped-def]
    def run(context: typer.Context) -> None:
        if importlib.util.find_spec("torch") is None:
            fail(f"`vitrine {name}` needs the networks: pip install 'vitrine[models]'.")
        argv = [*python("models"), name, *context.args]
        os.execve(argv[0], argv, os.environ | {PROGRAM: "vitrine"})

    return run
