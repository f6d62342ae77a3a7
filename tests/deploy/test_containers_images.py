"""The Dockerfile: pinned, without rights, and about files, modules and settings that exist."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import tomllib
from glob import glob
from pathlib import Path

import pytest

from deploy.images import slim
from deploy.images.build import base, version
from tests.deploy.dockerfile import arguments, stages, variables

ROOT = Path(__file__).parents[2]
TARGETS = ("gateway", "worker", "triton")


def test_bases_are_pinned_build_arguments() -> None:
    outside = {s.base for s in stages().values() if s.base not in stages()}
    assert outside == {"${PYTHON_IMAGE}", "${TRITON_IMAGE}", "scratch"}
    for name in ("PYTHON_IMAGE", "TRITON_IMAGE"):
        image, tag = arguments()[name].rsplit(":", 1)
        assert "/" in image
        assert any(c.isdigit() for c in tag)
        assert base(name) == arguments()[name]


def test_the_version_is_the_projects() -> None:
    assert arguments()["VERSION"] == version()


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_without_rights(target: str) -> None:
    stage = stages()[target]
    assert stage.last("USER") == "10001:10001"
    assert stage.last("VOLUME") == variables(stage)["VITRINE_DATA_DIR"]
    assert "org.opencontainers.image.title" in stage.last("LABEL")
    check = stage.last("HEALTHCHECK")
    assert "python -m service.observability.probe" in check
    assert importlib.util.find_spec("service.observability.probe") is not None


@pytest.mark.parametrize("target", TARGETS)
def test_the_entry_point_exists(target: str) -> None:
    python, option, module, *arguments = stages()[target].entry_point()
    assert (python, option) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None
    if arguments:
        command = [sys.executable, "-m", module, *arguments, "--help"]
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def test_triton_itself_is_on_the_path() -> None:
    assert "/opt/tritonserver/bin" in variables(stages()["triton"])["PATH"].split(":")


def test_copied_paths_exist_and_enter_the_context() -> None:
    admitted = {
        line.removeprefix("!").rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = [shlex.split(value) for stage in stages().values() for value in stage.all("COPY")]
    sources = [path for copy in copies if not copy[0].startswith("--from") for path in copy[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == path or source.startswith(f"{path}/") for path in admitted)
    assert all((ROOT / path).exists() for path in admitted)


def test_gateway_and_worker_have_no_networks() -> None:
    wheel = stages()["service-wheel"]
    assert wheel.all("COPY") == ["service service"]
    assert wheel.base == "service-packages"
    assert not [run for run in stages()["service-packages"].all("RUN") if "[models]" in run]


def test_a_wheel_holds_every_file(tmp_path: Path) -> None:
    """Lua scripts, pages and weights are in the wheel that the images install."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    packed = {
        Path(path)
        for package, globs in data.items()
        for pattern in globs
        for path in glob(str(ROOT / package / pattern), recursive=True)
    }
    kept = subprocess.run(
        ["git", "ls-files", "service", "models"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    if not kept:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in kept if not name.endswith(".py") and (ROOT / name).exists()]
    assert [file for file in files if file not in packed] == []


def test_slimming_takes_tests_and_symbols(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "numbers"
    (package / "tests").mkdir(parents=True)
    (package / "tests" / "test_it.py").touch()
    (package / "core.pyx").touch()
    (package / "core.py").touch()
    module = package / "module.so"
    found = next(Path(sys.prefix).rglob("_uvloop*.so"), None) or next(
        Path(sys.prefix).rglob("loop.cpython*.so")
    )
    module.write_bytes(found.read_bytes())
    bundled = package.parent / "numbers.libs" / "libx.so"
    bundled.parent.mkdir()
    bundled.write_bytes(found.read_bytes())
    try:
        slim.slim(tmp_path)
    except FileNotFoundError:
        pytest.skip("binutils' strip is not installed")
    assert sorted(path.name for path in package.iterdir()) == ["core.py", "module.so"]
    assert module.stat().st_size < found.stat().st_size == bundled.stat().st_size
