"""What a Triton container runs: bring the model repository up to date, then become `tritonserver`.

The catalogue and the models to start with are loaded before the server answers anybody, at every
start, so that a container that was restarted serves what it served before.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from models.console import Refused
from models.repository import build
from service.triton.cards import CATALOGUE
from service.triton.server import remove_shared_memory, server_options, thread_environment


def serve(
    repository: Path, device: str, models: Iterable[str] | None, options: Sequence[str]
) -> NoReturn:
    """Replace this process by a Triton that serves `repository`; `options` go to it as they are.

    Without `models` the default of every task is loaded. Raises Refused when there is no
    `tritonserver` on the PATH, KeyError for a model that the repository does not have.
    """
    binary = shutil.which("tritonserver")
    if binary is None:
        raise Refused("there is no tritonserver on the PATH; on a laptop use: vitrine up")
    load = [CATALOGUE, *(card.id for card in build(repository, device, models))]
    remove_shared_memory(repository)
    # Triton's Python processes find this environment by the first python3 on the PATH.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    environment = {**os.environ, **thread_environment(), "PATH": path}
    os.execve(binary, [binary, *server_options(repository, load), *options], environment)
