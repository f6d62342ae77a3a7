"""buildah without a container engine or a registry: every step in a chroot, layers as plain folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Debian's buildah reads the second variable itself, the first one only as an option.
DRIVER = os.environ.get("STORAGE_DRIVER", "vfs")
ENVIRONMENT = {"BUILDAH_ISOLATION": os.environ.get("BUILDAH_ISOLATION", "chroot")}
PACKAGES = ("buildah", "debootstrap")


class Missing(Exception):
    """A program or a right that building needs is not there; the message says how to get it."""


def require() -> None:
    """Raise Missing unless the programs are installed and we may use them."""
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if missing:
        raise Missing(f"not installed: {', '.join(missing)} (apt-get install {' '.join(PACKAGES)})")
    if os.geteuid() != 0:
        raise Missing("a chroot needs root: run it as root")


def buildah(*arguments: str | Path, quiet: bool = True) -> str:
    """Run buildah and return what it prints; `quiet` False shows it as well. Raises CalledProcessError."""
    done = subprocess.run(
        ["buildah", "--storage-driver", DRIVER, *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE if quiet else None,
        text=True,
        check=True,
    )
    return (done.stdout or "").strip()


def exists(image: str) -> bool:
    """Tell whether there is an image of this name here."""
    return image in _images()


def _images() -> dict[str, dict[str, Any]]:
    listed = json.loads(buildah("images", "--json") or "null") or []
    return {name: entry for entry in listed for name in entry.get("names") or ()}


def inspect(image: str) -> dict[str, Any]:
    """Return the image's OCI document: `config`, `history`, `rootfs`."""
    document: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", image))
    return document


@contextmanager
def root_of(image: str) -> Iterator[Path]:
    """Yield the root of a container made from `image`, as a folder here; it is removed at the end."""
    container = buildah("from", "--pull-never", image)
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("rm", container)


def command_line(config: dict[str, Any], arguments: Sequence[str] = ()) -> list[str]:
    """Return what a container of this configuration runs; `arguments` replace its own, as with Docker."""
    return [*(config.get("Entrypoint") or ()), *(arguments or config.get("Cmd") or ())]
