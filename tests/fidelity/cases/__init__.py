"""One case a paper: `cases/<slug>.py` (dashes as underscores) with a function

    def outputs(golden: Golden) -> dict[str, torch.Tensor]

that builds this project's network from the file's `config`, `state` and `inputs` and returns every
output that the file records, by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from tests.fidelity.golden import Golden

Case = Callable[[Golden], dict[str, torch.Tensor]]


class NoCase(LookupError):
    """No case is written for this paper."""


def case(slug: str) -> Case:
    """Return the case of the paper `slug`. Raises NoCase."""
    name = f"{__name__}.{slug.replace('-', '_')}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
        raise NoCase(f"no fidelity case for {slug!r}") from None
    found: Case = module.outputs
    return found
