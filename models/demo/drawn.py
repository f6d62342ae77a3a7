"""Drawn data kept on disk: what takes minutes to draw is drawn once, not anew for each network trained on it."""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

__all__ = ["kept"]


def kept(
    name: str, sources: Sequence[ModuleType], draw: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays of `draw()`, from the user's cache where an earlier call has left them.

    `name` tells the arguments of the drawing, and `sources` are the modules that draw: once their text
    has changed, what was kept is not used any more.
    """
    digest = hashlib.sha256()
    for module in sources:
        digest.update(inspect.getsource(module).encode())
    path = _folder() / f"{name}-{digest.hexdigest()[:16]}.npz"
    if path.exists():
        with np.load(path) as file:
            return dict(file)
    arrays = draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under its name the file is complete: several trainings may draw at the same time.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.savez(file, **arrays)
    os.replace(file.name, path)
    return arrays


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vitrine" / "drawn"
