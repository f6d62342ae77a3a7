"""`add`: the user's own checkpoint becomes a model that is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from models.architecture import Source, Variant
from models.registry import architecture, variant
from models.runtimes.choice import Precision, Runtime
from models.weights.checkpoint import read_checkpoint
from models.weights.conversion import Converted, Storage, convert
from models.weights.download import PATIENCE, Patience, download, sha256_of
from models.weights.entry import (
    MODEL,
    downloads,
    file_name,
    install,
    only_default,
    place,
    staging,
)
from models.weights.errors import NameRefused, UnreadableCheckpoint, WrongLabels
from models.weights.pull import Installed, Watch, unwatched
from service.triton.cards import CATALOGUE, Card, WeightsRecord

_ID: TypeAdapter[str] = TypeAdapter(Annotated[str, *Card.model_fields["id"].metadata])


def add(
    name: str,
    spec: str,
    checkpoints: Sequence[Path],
    repository: Path,
    *,
    labels: tuple[str, ...] | None = None,
    key: str | None = None,
    parts: Mapping[str, Path] | None = None,
    storage: Storage = "keep",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    default: bool = False,
    replace: bool = False,
    device: str = "auto",
    hub: str | None = None,
    watch: Watch = unwatched,
    patience: Patience = PATIENCE,
) -> Installed:
    """Write an entry from the user's own checkpoint in the format of the authors (or of this project).

    `spec` is `slug:variant`, or `slug` to take the variant that fits. Several checkpoints are joined, for
    networks that the authors publish in several files. `key` names the wrapper key to read
    (`model_ema`) where a file holds several sets of weights. `parts` are files of further parts: tensors
    by name of the part (`vae`), others by name of the file (`tokenizer.json`). Those not given are
    downloaded from where the variant's are published.

    Raises UnknownArchitecture and WeightsError; after an error the repository is as it was.
    """
    slug, _, wanted = spec.partition(":")
    found = variant(spec)[0] if wanted else architecture(slug)
    _check_name(name, repository, replace)
    contents = [_read(path, key) for path in checkpoints]
    with staging(repository) as folder:
        converted = convert(contents, found, wanted or None, folder / MODEL, storage)
        chosen = found.variants[converted.variant]
        names, invented = _labels(chosen, converted, labels)
        files = {
            Source(path.name, part, "raw" if Path(part).suffix else "official"): path
            for part, path in (parts or {}).items()
        }
        given = {file_name(source) for source in files}
        fetched = {
            source: download(
                source.url,
                downloads(repository),
                sha256=source.sha256,
                hub=hub,
                watch=watch(source),
                patience=patience,
            ).path
            for source in chosen.sources
            if source.part != "model" and file_name(source) not in given
        }
        place(files | fetched, found, chosen, folder)
        record = WeightsRecord(
            kind="own",
            source=" ".join(path.name for path in checkpoints),
            sha256=" ".join(sha256_of(path) for path in checkpoints),
        )
        card = found.card(
            chosen.name,
            id=name,
            weights=record,
            labels=names,
            parameter_count=converted.parameters,
        ).model_copy(update={"default": default})
        card = install(repository, card, folder, found, device, runtime, precision)
    for path in fetched.values():
        path.unlink()
    if default:
        only_default(repository, card, device)
    return Installed(card, (*converted.warnings, *invented))


def _check_name(name: str, repository: Path, replace: bool) -> None:
    try:
        _ID.validate_python(name)
    except ValidationError as error:
        raise NameRefused(
            f"{name!r} cannot be a model's name: small letters, digits and . _ + - only, "
            "beginning with a letter or digit, 128 at most"
        ) from error
    if name == CATALOGUE:
        raise NameRefused(f"{name!r} is the name of the repository's own catalogue")
    if (repository / name).exists() and not replace:
        raise NameRefused(f"{name} is in the repository already; say --replace to replace it")


def _read(path: Path, key: str | None) -> Mapping[str, Any]:
    content = read_checkpoint(path)
    if key is None:
        return content
    inner = content.get(key)
    if not isinstance(inner, Mapping):
        held = ", ".join(k for k, v in content.items() if isinstance(v, Mapping)) or "none"
        raise UnreadableCheckpoint(f"{path} has no weights under {key!r}; wrapper keys: {held}")
    return inner


def _labels(
    chosen: Variant, converted: Converted, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the labels of the model, and what to say where names had to be invented."""
    classes = converted.classes if converted.classes is not None else len(chosen.labels) or None
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
        f"until then they are called class 0 to class {classes - 1}"
    ]
