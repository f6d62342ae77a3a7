"""A stand-in for the Python base image, where no registry is to be reached: Debian by `debootstrap`.

It has the name that the Dockerfile asks for, and what the Dockerfile uses of the real one: Debian
bookworm, `python` 3.11 with pip, apt. Documentation and translations are left out, as in Docker's
slim images.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from deploy.images.buildah import buildah

SUITE = "bookworm"
_PACKAGES = ("ca-certificates", "python3.11", "python3-pip")
# What the slim images leave out, too.
_LEFT_OUT = ("doc", "man", "info", "locale", "groff", "lintian")


def make(name: str, mirror: str) -> None:
    """Build the stand-in from the Debian mirror and tag it `name`; takes a minute or two."""
    with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        root = Path(folder) / "root"
        packages = ",".join(_PACKAGES)
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, root, mirror],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for share in _LEFT_OUT:
            shutil.rmtree(root / "usr" / "share" / share, ignore_errors=True)
        for cache in (*root.glob("var/cache/apt/*"), *root.glob("var/lib/apt/lists/*")):
            shutil.rmtree(cache) if cache.is_dir() else cache.unlink()
        for compiled in list(root.rglob("__pycache__")):
            shutil.rmtree(compiled)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3.11")
        commit(root, name)


def commit(root: Path, name: str, base: str = "scratch") -> None:
    """Make an image `name` of the files below `root`, on top of `base`."""
    container = buildah("from", "--pull-never", base)
    try:
        buildah("add", "--quiet", container, root, "/")
        buildah("config", "--cmd", "python3", container)
        buildah("commit", "--quiet", container, name)
    finally:
        buildah("rm", container)
