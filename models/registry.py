"""The single list of what exists: every architecture registers itself here, one paper a module."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

import models
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
    "representation",
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
    """Return every architecture by slug, importing the families' modules at the first call."""
    for family in FAMILIES:
        try:
            package = importlib.import_module(f"{models.__name__}.{family}")
        except ModuleNotFoundError as missing:
            if missing.name != f"{models.__name__}.{family}":
                raise
            continue
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_ARCHITECTURES.items()))


def architecture(slug: str) -> Architecture:
    """Return one architecture. Raises UnknownArchitecture."""
    known = architectures()
    if slug not in known:
        raise UnknownArchitecture(f"unknown architecture {slug!r}; known: {', '.join(known)}")
    return known[slug]


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
