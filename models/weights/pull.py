"""`pull`: a variant's published weights become a model that is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.architecture import Architecture, Source, Variant
from models.registry import UnknownArchitecture, architectures, variant
from models.repository import cards
from models.runtimes.choice import Precision, Runtime
from models.weights.checkpoint import read_checkpoint
from models.weights.conversion import Converted, convert
from models.weights.download import PATIENCE, Downloaded, Patience, Watcher, download
from models.weights.entry import MODEL, downloads, install, place, staging
from models.weights.errors import LicenceNotAccepted, NameRefused, WeightsError, WrongLabels
from service.triton.cards import Card, WeightsRecord

Watch = Callable[[Source], Watcher]


@dataclass(frozen=True)
class Installed:
    """A model that is in the repository now. `fresh` is false where it was there already."""

    card: Card
    warnings: tuple[str, ...] = ()
    fresh: bool = True


def unwatched(source: Source) -> Watcher:
    """Let a download go on without being watched."""
    return lambda received, total: None


def published(name: str) -> tuple[Architecture, Variant]:
    """Return what `slug`, `slug:variant` or the id of a variant names, if weights of it are published.

    Raises UnknownArchitecture, and WeightsError where nothing is published.
    """
    try:
        found, chosen = variant(name)
    except UnknownArchitecture:
        ids = {
            f"{a.slug}-{v}": f"{a.slug}:{v}" for a in architectures().values() for v in a.variants
        }
        if name not in ids:
            raise
        found, chosen = variant(ids[name])
    if not chosen.sources:
        others = [f"{found.slug}:{v.name}" for v in found.variants.values() if v.sources]
        raise WeightsError(
            f"no weights of {found.slug}:{chosen.name} are published; "
            + (f"there are those of {', '.join(others)}" if others else "bring your own with `add`")
        )
    return found, chosen


def pull(
    name: str,
    repository: Path,
    *,
    hub: str | None = None,
    accept_licence: bool = False,
    replace: bool = False,
    device: str = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    watch: Watch = unwatched,
    patience: Patience = PATIENCE,
) -> Installed:
    """Download the published weights of `name`, convert them and write their entry.

    They become the default of their task where that has only demo weights so far. Raises
    UnknownArchitecture and WeightsError; after an error the repository is as it was, and the part of a
    file that arrived is kept for the next attempt.
    """
    found, chosen = published(name)
    licence = found.terms(chosen)
    if not (licence.commercial or accept_licence):
        raise LicenceNotAccepted(
            f"the weights of {found.slug}:{chosen.name} are under {licence.weights}, which forbids "
            "commercial use; say --accept-licence if yours is not commercial"
        )
    id, present = f"{found.slug}-{chosen.name}", {card.id: card for card in cards(repository)}
    address = " ".join(source.url for source in chosen.sources if source.part == "model")
    if id in present and not replace:
        record = present[id].weights
        if record.kind == "official" and record.source == address:
            return Installed(present[id], fresh=False)
        raise NameRefused(
            f"{id} is in the repository with other weights; say --replace to replace it"
        )
    files = {
        source: download(
            source.url,
            downloads(repository),
            sha256=source.sha256,
            hub=hub,
            watch=watch(source),
            patience=patience,
        )
        for source in chosen.sources
    }
    try:
        with staging(repository) as folder:
            converted = _gather(files, found, chosen, folder)
            network = [file for source, file in files.items() if source.part == "model"]
            record = WeightsRecord(
                kind="official", source=address, sha256=" ".join(file.sha256 for file in network)
            )
            card = found.card(chosen.name, weights=record, parameter_count=converted.parameters)
            settled = any(
                c.default and c.task == card.task and c.weights.kind != "demo" and c.id != id
                for c in present.values()
            )
            card = card.model_copy(update={"default": not settled})
            card = install(repository, card, folder, found, device, runtime, precision)
    except WeightsError:
        # What was published is not usable; when that has been put right, it must be fetched again.
        _discard(files)
        raise
    _discard(files)
    return Installed(card, converted.warnings)


def _gather(
    files: Mapping[Source, Downloaded], found: Architecture, chosen: Variant, folder: Path
) -> Converted:
    """Put the network and its further parts into `folder`."""
    network = [file for source, file in files.items() if source.part == "model"]
    checkpoints = [read_checkpoint(file.path) for file in network]
    converted = convert(checkpoints, found, chosen.name, folder / MODEL)
    if chosen.labels and converted.classes not in (None, len(chosen.labels)):
        raise WrongLabels(
            f"the published file has {converted.classes} classes, "
            f"{found.slug}:{chosen.name} has {len(chosen.labels)} labels"
        )
    place({source: file.path for source, file in files.items()}, found, chosen, folder)
    return converted


def _discard(files: Mapping[Source, Downloaded]) -> None:
    for file in files.values():
        file.path.unlink()
