"""Stand-ins for the base images, where no registry is to be reached: Debian by `debootstrap`.

They have the names that the Dockerfile asks for, and what the Dockerfile uses of the real ones: Debian
bookworm, `python` 3.11 with pip, apt. Documentation and translations are left out, as in Docker's
slim images.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.images.buildah import buildah
from service.supervisor import embedded

SUITE = "bookworm"
_PACKAGES = ("ca-certificates", "python3.11", "python3-pip")
# What the slim images leave out, too.
_LEFT_OUT = ("doc", "man", "info", "locale", "groff", "lintian")
_LIBRARIES = "nvidia_pytriton.libs"


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


def commit(
    root: Path,
    name: str,
    base: str = "scratch",
    packages: Sequence[str] = (),
    variables: Sequence[str] = (),
) -> None:
    """Make an image `name` of `base`, Debian packages and the files below `root`."""
    container = buildah("from", "--pull-never", base)
    try:
        if packages:
            buildah("run", container, "--", "apt-get", "update", "--quiet=2")
            buildah("run", container, "--", "apt-get", "install", "--yes", "--quiet=2", *packages)
        buildah("add", "--quiet", container, root, "/")
        buildah("config", *(f"--env={pair}" for pair in variables), "--cmd=python3", container)
        buildah("commit", "--quiet", container, name)
    finally:
        buildah("rm", container)


def make_triton(name: str, python_image: str) -> None:
    """Build a stand-in for NVIDIA's Triton image: the server of the `nvidia-pytriton` wheel where NVIDIA has its own.

    Its layout is that of the real one (`/opt/tritonserver/bin/tritonserver`, `backends/python`); the Python
    is the Python stand-in's, the one that runs this.
    """
    wheel = embedded.triton_server().parents[1]
    with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        root = Path(folder) / "root"
        server = root / "opt" / "tritonserver"
        (server / "bin").mkdir(parents=True)
        shutil.copy(wheel / "bin" / "tritonserver", server / "bin")
        shutil.copytree(wheel / "backends" / "python", server / "backends" / "python")
        shutil.copy(embedded.python_stub(), server / "backends" / "python")
        # Where the loader looks by the binary's own run path, and by the variable below.
        shutil.copytree(wheel.parents[1] / _LIBRARIES, root / _LIBRARIES)
        variables = (f"LD_LIBRARY_PATH=/{_LIBRARIES}",)
        commit(root, name, python_image, packages=("libpython3.11",), variables=variables)
