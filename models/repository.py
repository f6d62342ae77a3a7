"""The Triton model repository: one entry a model, written from its card.

    <repository>/<id>/config.pbtxt          tensors, batching, instances, warm-up, the card as JSON
    <repository>/<id>/1/model.py            the shared backend
    <repository>/<id>/1/model.safetensors   the weights, and whatever further parts the network has
    <repository>/<id>/1/model.xml, .bin     the network as OpenVINO runs it, where that serves the model

An entry is complete or absent: it is written beside the repository and renamed into it. Triton runs
with explicit model control and sees new entries at once.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as config_pb

from models.entries import CONFIG, InvalidEntry, read_card
from models.registry import architecture
from models.runtimes.choice import Precision, Runtime, accelerate, is_current
from models.shipped import SHIPPED, shipped_parts
from models.signatures import SIGNATURES, dims
from models.weights.fit import blueprint
from service.triton.cards import CATALOGUE, Card, WeightsRecord

_MODEL_PY = '"""Served by the shared backend."""\n\nfrom models.backend import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'
_CATALOGUE_PY = _MODEL_PY.replace("models.backend", "models.catalogue").replace(
    "the shared backend", "the repository's catalogue"
)


def write_entry(
    repository: Path, card: Card, parts: Mapping[str, Path], device: str = "auto"
) -> Path:
    """Write the entry of `card` and return its directory; an entry of the same id is replaced.

    `parts` are the files of the version directory by name (`model.safetensors` ...): hard-linked
    where possible, else copied. `device`: `auto`, `cpu` or `cuda`.
    """
    return _replace(
        repository,
        card.id,
        {CONFIG: text_format.MessageToString(config(card, device)), "1/model.py": _MODEL_PY},
        parts,
    )


def write_catalogue(repository: Path) -> Path:
    """Write the entry of the catalogue, which tells the cards of entries that are not loaded."""
    entry = config_pb.ModelConfig(name=CATALOGUE, backend="python", max_batch_size=0)
    entry.input.add(name="TASK", data_type=config_pb.TYPE_STRING, dims=[1])
    entry.input.add(name="LOAD", data_type=config_pb.TYPE_STRING, dims=[1], optional=True)
    entry.input.add(name="LOST", data_type=config_pb.TYPE_STRING, dims=[1], optional=True)
    entry.input.add(name="WITHDRAW", data_type=config_pb.TYPE_STRING, dims=[1], optional=True)
    entry.output.add(name="CARDS", data_type=config_pb.TYPE_STRING, dims=[-1])
    entry.output.add(name="ROOM", data_type=config_pb.TYPE_STRING, dims=[1])
    entry.instance_group.add(kind=config_pb.ModelInstanceGroup.KIND_CPU, count=1)
    files = {CONFIG: text_format.MessageToString(entry), "1/model.py": _CATALOGUE_PY}
    return _replace(repository, CATALOGUE, files, {})


def build(
    repository: Path, device: str = "auto", models: Iterable[str] | None = None
) -> list[Card]:
    """Bring the repository up to date and return the cards of `models` (default: what ships, and every own default).

    Shipped models without an entry, or with one of older weights, are written; entries of the user
    keep their weights and get a configuration for `device`. Of `models`, those that had none get the
    fastest runtime of this machine, which takes seconds for each; so do those whose exported graph is
    missing or of other weights. Raises KeyError for an id that is neither.
    """
    repository.mkdir(parents=True, exist_ok=True)
    write_catalogue(repository)
    present = {card.id: card for card in cards(repository)}
    for id in SHIPPED:
        card, parts = shipped(id)
        if id not in present or present[id].unaccelerated != card:
            write_entry(repository, card, parts, device)
            present[id] = card
    for card in present.values():
        _reconfigure(repository, card, device)
    wanted = list(models) if models is not None else [c.id for c in present.values() if c.default]
    missing = [id for id in wanted if id not in present]
    if missing:
        raise KeyError(
            f"no model {', '.join(map(repr, missing))} in the repository; it has: {', '.join(sorted(present))}"
        )
    return [_with_runtime(repository, present[id], device) for id in wanted]


def choose_runtime(
    repository: Path,
    id: str,
    device: str = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
) -> Card:
    """Choose the runtime of the entry `id` anew and return its card. Raises KeyError if there is no such
    entry, NoRuntime if what was asked for cannot be had; the entry is as it was then."""
    card = next((card for card in cards(repository) if card.id == id), None)
    if card is None:
        raise KeyError(f"no model {id!r} in the repository")
    parts = entry_parts(repository, id)
    with tempfile.TemporaryDirectory(prefix=f".{id}-runtime-", dir=repository.parent) as path:
        folder = Path(path)
        for name, part in parts.items():
            _place(part, folder / name)
        chosen = accelerate(
            card.unaccelerated, folder, on_gpu=on_gpu(device), runtime=runtime, precision=precision
        )
        write_entry(repository, chosen, {file.name: file for file in folder.iterdir()}, device)
    return chosen


def entry_parts(repository: Path, id: str) -> dict[str, Path]:
    """Return the files of an entry's version by name, without its `model.py`."""
    folder = repository / id / "1"
    return {p.name: p for p in folder.iterdir() if p.is_file() and p.name != "model.py"}


def shipped(id: str) -> tuple[Card, dict[str, Path]]:
    """Return card and parts of a model whose weights ship with the project."""
    spec, kind = SHIPPED[id]
    slug, _, variant = spec.partition(":")
    parts, sha256 = shipped_parts(id)
    weights = WeightsRecord(kind=kind, source="shipped with Vitrine", sha256=sha256)
    made = architecture(slug)
    count = blueprint(made, made.config(variant)).parameters
    return made.card(variant, id=id, weights=weights, parameter_count=count), parts


def cards(repository: Path) -> list[Card]:
    """Return the cards of the repository's valid entries, by id."""
    found = []
    for entry in sorted(repository.glob(f"*/{CONFIG}")):
        if entry.parent.name != CATALOGUE:
            try:
                found.append(read_card(entry))
            except InvalidEntry:
                continue
    return found


def remove_entry(repository: Path, id: str) -> None:
    """Take the entry `id` out of the repository. Raises KeyError if there is none."""
    entry = repository / id
    if not (entry / CONFIG).exists() or id == CATALOGUE:
        raise KeyError(f"no model {id!r} in the repository")
    shutil.rmtree(_aside(repository, entry))


def config(card: Card, device: str = "auto") -> config_pb.ModelConfig:
    """Return Triton's configuration of a model: everything follows from its card and its task."""
    made = architecture(card.architecture)
    signature = SIGNATURES[card.task]
    entry = config_pb.ModelConfig(name=card.id, backend="python", max_batch_size=made.max_batch)
    for spec in signature.inputs:
        entry.input.add(
            name=spec.name,
            data_type=config_pb.DataType.Value(spec.type),
            dims=dims(spec, card),
            optional=spec.optional,
        )
    for spec in signature.outputs:
        entry.output.add(
            name=spec.name, data_type=config_pb.DataType.Value(spec.type), dims=list(spec.dims)
        )
    entry.dynamic_batching.preferred_batch_size.extend(
        size for size in made.preferred_batches if size <= made.max_batch
    )
    entry.dynamic_batching.max_queue_delay_microseconds = made.queue_delay_us
    # No priorities, no queue policy: with either, Triton's batcher forms no batch while one runs, and
    # every now and then sleeps for half a second beside a full queue (triton-inference-server/server
    # issue 8870). A caller's deadline ends a request that waits all the same: gRPC cancels it.
    kind = "KIND_GPU" if on_gpu(device) else "KIND_CPU"
    entry.instance_group.add(kind=config_pb.ModelInstanceGroup.Kind.Value(kind), count=1)
    if signature.streamed:
        entry.model_transaction_policy.decoupled = True
    else:
        warm = entry.model_warmup.add(name="zeros", batch_size=1)
        for spec in signature.inputs:
            if not spec.optional:
                tensor = warm.inputs[spec.name]
                tensor.data_type = config_pb.DataType.Value(spec.type)
                tensor.dims.extend(d if d > 0 else 224 for d in dims(spec, card))
                tensor.zero_data = True
    entry.parameters["card"].string_value = card.model_dump_json(exclude_defaults=True)
    return entry


def describe(cards: Iterable[Card]) -> str:
    """Return what `vitrine up` shows of the models that it starts with, as JSON."""
    return json.dumps(
        [
            {
                "id": c.id,
                "task": c.task,
                "title": c.title,
                "weights": c.weights.kind,
                "default": c.default,
            }
            for c in cards
        ]
    )


def on_gpu(device: str) -> bool:
    """Tell whether `auto`, `cpu` or `cuda` means a GPU on this machine."""
    if device == "auto":
        import torch

        return torch.cuda.is_available()
    return device == "cuda"


def _with_runtime(repository: Path, card: Card, device: str) -> Card:
    """Return the card with a runtime: the one that it has, if that was chosen for the weights that are there."""
    streamed = SIGNATURES[card.task].streamed
    if streamed or on_gpu(device) or is_current(card, repository / card.id / "1"):
        return card
    return choose_runtime(repository, card.id, device)


def _reconfigure(repository: Path, card: Card, device: str) -> None:
    """Write an entry's configuration anew where it differs (another device, another release)."""
    path = repository / card.id / CONFIG
    text = text_format.MessageToString(config(card, device))
    if path.read_text() != text:
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, path)


def _replace(
    repository: Path, id: str, texts: Mapping[str, str], parts: Mapping[str, Path]
) -> Path:
    repository.mkdir(parents=True, exist_ok=True)
    # Beside the repository, on the same file system: Triton must never see half an entry.
    fresh = Path(tempfile.mkdtemp(prefix=f".{id}-", dir=repository.parent))
    try:
        fresh.chmod(0o755)
        (fresh / "1").mkdir()
        for name, text in texts.items():
            (fresh / name).write_text(text)
        for name, source in parts.items():
            _place(source, fresh / "1" / name)
        entry = repository / id
        old = _aside(repository, entry) if entry.exists() else None
        os.rename(fresh, entry)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return entry


def _aside(repository: Path, entry: Path) -> Path:
    aside = Path(tempfile.mkdtemp(prefix=f".{entry.name}-old-", dir=repository.parent)) / "entry"
    os.rename(entry, aside)
    return aside.parent


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
