"""Take out of a virtual environment what a server does not need: `python slim.py DIRECTORY` (in a build stage).

Tests, C and Cython sources, and the debug symbols of extension modules (with binutils' `strip`).
Bundled libraries (`*.libs`) stay as their wheels have them: their headers were rewritten when the
wheels were repaired, which `strip` does not always survive.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_SOURCES = {".a", ".c", ".cpp", ".h", ".hpp", ".pxd", ".pyx", ".pyi"}
_FOLDERS = {"__pycache__", "tests"}


def slim(environment: Path) -> None:
    """Remove and strip below `environment/lib`. Raises CalledProcessError when `strip` fails."""
    packages = environment / "lib"
    for folder in [path for path in packages.rglob("*") if path.name in _FOLDERS]:
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    for file in [path for path in packages.rglob("*") if path.suffix in _SOURCES]:
        file.unlink()
    modules = [
        path
        for path in packages.rglob("*.so")
        if not any(folder.name.endswith(".libs") for folder in path.parents)
    ]
    subprocess.run(["strip", "--strip-unneeded", *modules], check=True)


if __name__ == "__main__":
    slim(Path(sys.argv[1]))
