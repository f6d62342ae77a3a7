"""Build targets of the Dockerfile with buildah, with the package index that pip uses on this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.images.buildah import buildah

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
# Settings of pip that say where packages come from; the rest is this machine's own affair.
_INDEX = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")
_SETTING = re.compile(r"(?:global|install|:env:)\.([a-z-]+)='(.*)'")


def version() -> str:
    """Return the project's version."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def image(target: str) -> str:
    """Return the name of the image that `build` makes of a target."""
    return f"localhost/vitrine/{target}:{version()}"


def base(argument: str) -> str:
    """Return the default of a base image's build argument, such as PYTHON_IMAGE."""
    found = re.search(rf"^ARG {argument}=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    if found is None:
        raise KeyError(argument)
    return found[1]


def build(target: str, arguments: Mapping[str, str]) -> str:
    """Build a target and return the image's name. Raises CalledProcessError; buildah shows why."""
    revision = _git("rev-parse", "HEAD") or "unknown"
    given = {"VERSION": version(), "REVISION": revision, **arguments}
    with _pip_secrets() as secrets:
        buildah(
            "build",
            "--format=docker",  # OCI's own format has no health checks
            "--layers",
            "--pull-never",
            f"--target={target}",
            f"--tag={image(target)}",
            *(f"--build-arg={name}={value}" for name, value in given.items()),
            *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
            ROOT,
            quiet=False,
        )
    return image(target)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    return done.stdout.strip()


@contextmanager
def _pip_secrets() -> Iterator[dict[str, Path]]:
    """Yield the files that tell the build where packages come from; they never enter an image."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings = dict(_SETTING.findall(listed.stdout))
    lines = ["[global]"]
    for name in _INDEX:
        # Folders of this machine are not there in the build.
        remote = [part for part in settings.get(name, "").split() if not part.startswith("file:")]
        if remote:
            lines.append(f"{name} = {' '.join(remote)}")
    with tempfile.TemporaryDirectory(prefix="pip-secrets-") as folder:
        files = {"pip.conf": Path(folder) / "pip.conf"}
        if "cert" in settings:
            files["pip-ca"] = Path(folder) / "ca.pem"
            files["pip-ca"].write_bytes(Path(settings["cert"]).read_bytes())
            lines.append("cert = /run/secrets/pip-ca")
        files["pip.conf"].write_text("\n".join(lines) + "\n")
        yield files
