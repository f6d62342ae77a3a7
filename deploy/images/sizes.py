"""What an image weighs, layer by layer: on the disk, and compressed on its way from a registry."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.images.buildah import buildah

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: the step that made it, its bytes unpacked (as a tar) and compressed (gzip)."""

    step: str
    unpacked_bytes: int
    compressed_bytes: int


def layers(image: str) -> list[Layer]:
    """Return the image's layers, the base image's first. Writes the image to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="layers-") as folder:
        buildah("push", "--quiet", "--format=oci", image, f"oci:{folder}")
        index = json.loads((Path(folder) / "index.json").read_text())
        manifest = _blob(folder, index["manifests"][0])
        steps = _steps(_blob(folder, manifest["config"]))
        return [
            Layer(step, _unpacked(_path(folder, layer)), int(layer["size"]))
            for step, layer in zip(steps, manifest["layers"], strict=True)
        ]


def summary(image: str) -> dict[str, Any]:
    """Return the image's layers and their sums, in bytes."""
    found = layers(image)
    return {
        "unpacked_bytes": sum(layer.unpacked_bytes for layer in found),
        "compressed_bytes": sum(layer.compressed_bytes for layer in found),
        "layers": [asdict(layer) for layer in found],
    }


def table(sizes: Mapping[str, dict[str, Any]], seconds: Mapping[str, float]) -> str:
    """Return sizes and times as a Markdown document."""
    lines = [
        "# Images",
        "",
        "Built and run by `python -m deploy.images` on a Debian stand-in for the Python base image; the",
        "official one is of about the same size. MB are millions of bytes.",
        "",
        "| image | layer | MB unpacked | MB compressed |",
        "|---|---|---:|---:|",
    ]
    for name, found in sizes.items():
        lines.append(
            f"| **{name}** | | **{_mb(found, 'unpacked')}** | **{_mb(found, 'compressed')}** |"
        )
        lines += [
            f"| | `{layer['step']}` | {_mb(layer, 'unpacked')} | {_mb(layer, 'compressed')} |"
            for layer in found["layers"]
        ]
    lines += ["", "| what | seconds |", "|---|---:|"]
    lines += [f"| {what} | {value:.1f} |" for what, value in seconds.items()]
    return "\n".join(lines) + "\n"


def _mb(found: Mapping[str, Any], kind: str) -> str:
    return f"{found[f'{kind}_bytes'] / 1e6:.1f}"


def _steps(config: dict[str, Any]) -> list[str]:
    """Return what made each layer, in a few words."""
    entries = [entry for entry in config["history"] if not entry.get("empty_layer")]
    made = [entry.get("created_by", "") for entry in entries]
    return [_short(step) if number else "base image" for number, step in enumerate(made)]


def _short(step: str) -> str:
    step = re.sub(r"^.*?/bin/sh -c (#\(nop\) )?", "", step)
    step = re.sub(r"\s+", " ", re.sub(r"--mount=\S+|file:\S+|multi:\S+|dir:\S+", "", step)).strip()
    return step if len(step) <= 60 else f"{step[:57]}..."


def _blob(folder: str, descriptor: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_path(folder, descriptor).read_text())
    return document


def _path(folder: str, descriptor: dict[str, Any]) -> Path:
    return Path(folder, "blobs", *descriptor["digest"].split(":"))


def _unpacked(layer: Path) -> int:
    with gzip.open(layer) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""))
