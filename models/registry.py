"""The single list of what exists: every architecture registers itself here, one paper a module."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TypeVar

from models.architecture import Architecture, Variant

A = TypeVar("A", bound=Architecture)

_ARCHITECTURES: dict[str, Architecture] = {}

# Packages of `models` whose modules hold one paper each.
FAMILIES = (
    "classification",
    "segmentation",
    "detection",
    "deepfake",
    "super_resolution",
    "generation",
    "views",
    "embedding",
    "reconstruction",
    "explanation",
    "acceleration",
)


class UnknownArchitecture(KeyError):
    """No architecture or variant of that name; the message lists those there are."""

    def __str__(self) -> str:
        return str(self.args[0])


def register(architecture: type[A]) -> type[A]:
    """Class decorator: add one instance of `architecture` to the list."""
    if architecture.slug in _ARCHITECTURES:
        raise ValueError(f"architecture {architecture.slug!r} is registered twice")
    _ARCHITECTURES[architecture.slug] = architecture()
    return architecture


def architectures() -> dict[str, Architecture]:
    """Return every architecture by slug, importing the families' modules."""
    for path in _modules().values():
        importlib.import_module(path)
    return dict(sorted(_ARCHITECTURES.items()))


def architecture(slug: str) -> Architecture:
    """Return one architecture, importing only the module named after it. Raises UnknownArchitecture."""
    path = _modules().get(slug.replace("-", "_"))
    if path is not None:
        importlib.import_module(path)
    if slug not in _ARCHITECTURES:
        raise UnknownArchitecture(
            f"unknown architecture {slug!r}; known: {', '.join(architectures())}"
        )
    return _ARCHITECTURES[slug]


def _modules() -> dict[str, str]:
    """Return the import path of every paper's module by its file name, without importing them."""
    root = Path(__file__).parent
    return {
        file.stem: f"{__package__}.{family}.{file.stem}"
        for family in FAMILIES
        for file in sorted((root / family).glob("[!_]*.py"))
    }


def variant(spec: str) -> tuple[Architecture, Variant]:
    """Return what `slug` or `slug:variant` names; without a variant, the first that is no demo.

    Raises UnknownArchitecture.
    """
    slug, _, name = spec.partition(":")
    found = architecture(slug)
    if not name:
        name = next(
            (v.name for v in found.variants.values() if not v.demo), next(iter(found.variants))
        )
    if name not in found.variants:
        raise UnknownArchitecture(
            f"{slug!r} has no variant {name!r}; it has: {', '.join(found.variants)}"
        )
    return found, found.variants[name]
