"""The last steps of `pull` and `add`: the files of a model gathered in one place, proved, and written as an entry."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from safetensors.torch import save_file

from models.architecture import Architecture, Source, StateDict, Variant
from models.repository import cards, write_entry
from models.serving import Device
from models.weights.checkpoint import read_checkpoint
from models.weights.conversion import separate
from models.weights.errors import WeightsError
from service.triton.cards import Card

MODEL = "model.safetensors"


def downloads(repository: Path) -> Path:
    """Return where downloads wait: beside the repository, which Triton reads."""
    return repository.parent / "downloads"


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """Yield an empty folder on the repository's file system; it is gone afterwards."""
    folder = downloads(repository)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="staging-", dir=folder) as path:
        yield Path(path)


def further_parts(chosen: Variant) -> dict[str, list[Source]]:
    """Return the sources of the parts beside the network itself, by part."""
    parts: dict[str, list[Source]] = {}
    for source in chosen.sources:
        if source.part != "model":
            parts.setdefault(source.part, []).append(source)
    return parts


def place(
    files: Mapping[str, Iterable[Path]], found: Architecture, chosen: Variant, folder: Path
) -> None:
    """Put further parts into `folder` under their names, translated where the authors' names differ.

    A part that the variant has no source for is taken as it is. Raises CheckpointError.
    """
    sources = further_parts(chosen)
    for part, paths in files.items():
        source = next(iter(sources.get(part, ())), None)
        if source is None or source.format == "raw":
            (path,) = paths
            address = urlsplit(source.url).path if source is not None else path.name
            suffix = "" if Path(part).suffix else Path(address).suffix
            shutil.copyfile(path, folder / f"{part}{suffix}")
            continue
        state: StateDict = {}
        for path in paths:
            state |= found.translate_part(part, read_checkpoint(path), chosen.config)
        save_file(separate(state), folder / f"{part}.safetensors")


def install(repository: Path, card: Card, folder: Path, found: Architecture) -> None:
    """Write the entry of `card` from the files in `folder`. Raises WeightsError if they do not load."""
    if type(found).load is not Architecture.load:
        # Built from several parts: only loading them shows that they belong together.
        try:
            found.load(card, folder, Device())
        except Exception as error:
            raise WeightsError(f"{card.id} would not load: {error}") from error
    write_entry(repository, card, {path.name: path for path in folder.iterdir()})


def only_default(repository: Path, card: Card) -> None:
    """Take the default flag from the task's other models that were made its default on purpose."""
    for other in cards(repository):
        rival = other.task == card.task and other.id != card.id and other.weights.kind != "demo"
        if rival and other.default:
            folder = repository / other.id / "1"
            parts = {p.name: p for p in folder.iterdir() if p.is_file() and p.name != "model.py"}
            write_entry(repository, other.model_copy(update={"default": False}), parts)
