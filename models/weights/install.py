"""How weights become a model that is served: `pull` the published ones, `add` one's own.

Both end in one rename into the repository, so that the running service sees a whole entry or none.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from models.architecture import Architecture, Source, Variant, unwrapped
from models.registry import UnknownArchitecture, architecture, architectures, variant
from models.repository import cards, write_entry
from models.serving import Device
from models.weights.checkpoint import read_checkpoint
from models.weights.conversion import Converted, Precision, convert
from models.weights.download import Downloaded, Watcher, download, sha256_of
from models.weights.errors import (
    LicenceNotAccepted,
    NameRefused,
    UnreadableCheckpoint,
    WeightsError,
    WrongLabels,
)
from service.triton.cards import CATALOGUE, Card, Licence, WeightsRecord

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Installed:
    """A model that is in the repository now. `fresh` is false where it was there already."""

    card: Card
    warnings: tuple[str, ...] = ()
    fresh: bool = True


def published(name: str) -> tuple[Architecture, Variant]:
    """Return what `slug`, `slug:variant` or the id of a published variant names, if it has published weights.

    Raises UnknownArchitecture, and WeightsError where nothing is published.
    """
    slugs = architectures()
    if ":" in name or name in slugs:
        found, chosen = variant(name)
    else:
        ids = {f"{a.slug}-{v}": f"{a.slug}:{v}" for a in slugs.values() for v in a.variants}
        if name not in ids:
            raise UnknownArchitecture(
                f"no model or architecture {name!r}; `list` shows those there are"
            )
        found, chosen = variant(ids[name])
    if not chosen.sources:
        others = [f"{found.slug}:{v.name}" for v in found.variants.values() if v.sources]
        raise WeightsError(
            f"no weights are published for {found.slug}:{chosen.name}; "
            + (f"published: {', '.join(others)}" if others else "train or bring your own")
        )
    return found, chosen


def pull(
    name: str,
    repository: Path,
    *,
    hub: str | None = None,
    accept_licence: bool = False,
    replace: bool = False,
    watch: Callable[[Source], Watcher] = lambda source: lambda received, total: None,
    fetch: Callable[..., Downloaded] = download,
) -> Installed:
    """Download the published weights of `name`, convert them and write their entry.

    They become the default of their task where that has only demo weights so far. Raises
    UnknownArchitecture and WeightsError; after an error the repository is as it was, and complete
    downloads are kept for the next attempt.
    """
    found, chosen = published(name)
    if not (found.licence.commercial or accept_licence):
        raise LicenceNotAccepted(
            f"the weights of {found.slug} are under {found.licence.weights}, which forbids commercial "
            "use; say --accept-licence if that is fine for you"
        )
    present = {card.id: card for card in cards(repository)}
    id = f"{found.slug}-{chosen.name}"
    model = next(source for source in chosen.sources if source.part == "model")
    if id in present and not replace:
        record = present[id].weights
        if record.kind == "official" and record.source == model.url:
            return Installed(present[id], fresh=False)
        raise NameRefused(
            f"{id} is in the repository with other weights; say --replace to replace it"
        )
    with _staging(repository) as staging:
        files = {
            source.part: fetch(
                source.url,
                downloads(repository),
                sha256=source.sha256,
                hub=hub,
                watch=watch(source),
            )
            for source in chosen.sources
        }
        for source in chosen.sources:
            if source.part != "model":
                _place(source, files[source.part].path, staging)
        converted = convert(
            read_checkpoint(files["model"].path), found, chosen.name, staging / MODEL
        )
        if chosen.labels and converted.classes not in (None, len(chosen.labels)):
            raise WrongLabels(
                f"{model.url} has {converted.classes} classes, "
                f"{found.slug}:{chosen.name} has {len(chosen.labels)} labels"
            )
        record = WeightsRecord(kind="official", source=model.url, sha256=files["model"].sha256)
        card = found.card(chosen.name, weights=record, parameter_count=converted.parameters)
        rivals = [c for c in present.values() if c.task == card.task and c.weights.kind != "demo"]
        card = card.model_copy(update={"default": not any(c.default for c in rivals)})
        _install(repository, card, staging, found)
    for file in files.values():
        file.path.unlink()
    return Installed(card, converted.warnings)


def add(
    name: str,
    spec: str,
    checkpoint: Path,
    repository: Path,
    *,
    labels: tuple[str, ...] | None = None,
    key: str | None = None,
    parts: Mapping[str, Path] | None = None,
    precision: Precision = "keep",
    default: bool = False,
    replace: bool = False,
) -> Installed:
    """Write an entry from the user's own checkpoint in the format of the authors (or of this project).

    `spec` is `slug:variant`, or `slug` to take the variant that fits. `key` names the wrapper key to
    read (`model_ema`) where the file holds several sets of weights. `parts` are the further files
    that a network of several parts has, by file name. Raises UnknownArchitecture and WeightsError; after
    an error the repository is as it was.
    """
    slug, _, wanted = spec.partition(":")
    found = variant(spec)[0] if wanted else architecture(slug)
    _free(name, repository, replace)
    content = read_checkpoint(checkpoint)
    if key is not None:
        content = _unwrapped(content, key, checkpoint)
    with _staging(repository) as staging:
        converted = convert(content, found, wanted or None, staging / MODEL, precision)
        for part, path in (parts or {}).items():
            shutil.copyfile(path, staging / part)
        names, invented = _labels(found.variants[converted.variant], converted, labels)
        record = WeightsRecord(kind="own", source=checkpoint.name, sha256=sha256_of(checkpoint))
        card = found.card(
            converted.variant,
            id=name,
            weights=record,
            labels=names,
            parameter_count=converted.parameters,
        ).model_copy(
            update={
                "default": default,
                # The published figures and terms are those of other weights.
                "metrics": (),
                "licence": Licence(
                    code=found.licence.code, weights="not stated by whoever added it"
                ),
            }
        )
        _install(repository, card, staging, found)
    if default:
        _only_default(repository, card)
    return Installed(card, (*converted.warnings, *invented))


def downloads(repository: Path) -> Path:
    """Return where unfinished downloads wait: beside the repository, which Triton reads."""
    return repository.parent / "downloads"


def _free(name: str, repository: Path, replace: bool) -> None:
    try:
        Card.__pydantic_validator__.validate_assignment(Card.model_construct(), "id", name)
    except ValidationError as error:
        raise NameRefused(
            f"{name!r} cannot be a model's name: small letters, digits and . _ + - only, "
            "beginning with a letter or digit, 128 at most"
        ) from error
    if name == CATALOGUE:
        raise NameRefused(f"{name!r} is the name of the repository's own catalogue")
    if (repository / name).exists() and not replace:
        raise NameRefused(f"{name} is in the repository already; say --replace to replace it")


def _unwrapped(content: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    inner = content.get(key)
    if not isinstance(inner, Mapping):
        held = ", ".join(k for k, v in content.items() if isinstance(v, Mapping)) or "no mapping"
        raise UnreadableCheckpoint(f"{path} has no weights under {key!r}; it has: {held}")
    return inner


def _labels(
    chosen: Variant, converted: Converted, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the labels of the model, and what to say where names had to be invented."""
    classes = converted.classes
    if given is not None:
        if classes is None:
            raise WrongLabels("this architecture has no classes, so it takes no labels")
        if len(given) != classes:
            raise WrongLabels(
                f"the checkpoint has {classes} classes, the labels file has {len(given)} names"
            )
        return given, []
    if classes is None or classes == len(chosen.labels):
        return chosen.labels, []
    if not chosen.labels and classes == chosen.config.get("num_classes"):
        return (), []
    return tuple(f"class {i}" for i in range(classes)), [
        f"the checkpoint has {classes} classes of its own: give their names with --labels; "
        f"until then they are called class 0 … class {classes - 1}"
    ]


def _place(source: Source, file: Path, staging: Path) -> None:
    """Put a further part of a network under its name."""
    if source.format == "raw":
        suffix = "" if Path(source.part).suffix else Path(urlsplit(source.url).path).suffix
        shutil.copyfile(file, staging / f"{source.part}{suffix}")
    else:
        from safetensors.torch import save_file

        state = unwrapped(read_checkpoint(file))
        save_file(
            {k: v.contiguous().clone() for k, v in state.items()},
            staging / f"{source.part}.safetensors",
        )


def _install(repository: Path, card: Card, staging: Path, found: Architecture) -> None:
    if type(found).load is not Architecture.load:
        # Built from several parts: only loading them shows that they belong together.
        try:
            found.load(card, staging, Device())
        except Exception as error:
            raise WeightsError(f"{card.id} cannot be loaded: {error}") from error
    write_entry(repository, card, {path.name: path for path in staging.iterdir()})


def _only_default(repository: Path, card: Card) -> None:
    """Take the flag from other models that were made the default of the task on purpose."""
    for other in cards(repository):
        rival = other.task == card.task and other.id != card.id and other.weights.kind != "demo"
        if rival and other.default:
            folder = repository / other.id / "1"
            parts = {p.name: p for p in folder.iterdir() if p.is_file() and p.name != "model.py"}
            write_entry(repository, other.model_copy(update={"default": False}), parts)


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    folder = downloads(repository)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=folder) as staging:
        yield Path(staging)
