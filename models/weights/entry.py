"""The last steps of `pull` and `add`: the files of a model gathered in one place, proved, and written as an entry."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from safetensors.torch import save_file

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.repository import cards, entry_parts, on_gpu, write_entry
from models.runtimes.choice import Precision, Runtime, accelerate
from models.serving import Device
from models.signatures import SIGNATURES
from models.weights.checkpoint import read_checkpoint
from models.weights.conversion import separate
from models.weights.errors import NoRuntime, WeightsError
from service.triton.cards import Card

MODEL = "model.safetensors"
_DAY_S = 24 * 3600


def downloads(repository: Path) -> Path:
    """Return where downloads wait: beside the repository, which Triton reads."""
    return repository.parent / "downloads"


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """Yield an empty folder on the repository's file system; it is gone afterwards.

    What a process that was killed left behind more than a day ago is removed as well.
    """
    folder = downloads(repository)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("staging-*"):
        if time.time() - old.stat().st_mtime > _DAY_S:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="staging-", dir=folder) as path:
        yield Path(path)


def file_name(source: Source) -> str:
    """Return the name of a source's file in the model's folder."""
    if source.format != "raw":
        return f"{source.part}.safetensors"
    suffix = "" if Path(source.part).suffix else Path(urlsplit(source.url).path).suffix
    return f"{source.part}{suffix}"


def place(files: Mapping[Source, Path], found: Architecture, chosen: Variant, folder: Path) -> None:
    """Put the parts beside the network itself into `folder`, translated where the authors' names differ.

    Raises CheckpointError.
    """
    states: dict[str, StateDict] = {}
    for source, path in files.items():
        if source.part == "model":
            continue
        if source.format == "raw":
            shutil.copyfile(path, folder / file_name(source))
            continue
        content = read_checkpoint(path)
        states.setdefault(file_name(source), {}).update(
            unwrapped(content)
            if source.format == "native"
            else found.translate_part(source.part, content, chosen.config)
        )
    for name, state in states.items():
        save_file(separate(state), folder / name, metadata={"format": "pt"})


def install(
    repository: Path,
    card: Card,
    folder: Path,
    found: Architecture,
    device: str,
    runtime: Runtime = "auto",
    precision: Precision = "auto",
) -> Card:
    """Write the entry of `card` from the files in `folder`, choose its runtime, and return the card as written.

    Raises WeightsError if the files do not load, or the runtime asked for cannot run them.
    """
    if type(found).load is not Architecture.load:
        # Built from several parts: only loading them shows that they belong together.
        try:
            found.load(card, folder, Device())
        except Exception as error:
            raise WeightsError(f"{card.id} would not load: {error}") from error
    if SIGNATURES[card.task].streamed:
        if runtime in ("compile", "openvino"):
            raise NoRuntime(f"{card.title} works in steps: it runs in torch")
        card = card.model_copy(update={"precision": precision})
    else:
        card = accelerate(card, folder, on_gpu=on_gpu(device), runtime=runtime, precision=precision)
    write_entry(repository, card, {path.name: path for path in folder.iterdir()}, device)
    return card


def only_default(repository: Path, card: Card, device: str) -> None:
    """Take the default flag from the task's other models that were made its default on purpose."""
    for other in cards(repository):
        rival = other.task == card.task and other.id != card.id and other.weights.kind != "demo"
        if rival and other.default:
            parts = entry_parts(repository, other.id)
            write_entry(repository, other.model_copy(update={"default": False}), parts, device)
