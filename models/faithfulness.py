"""Are the maps of a model's evidence true to the model? `python -m models.faithfulness ID`.

A picture is darkened to its share of the evidence, and the model is asked again. If the map is true, the
probability of the class it was made for falls little, or even rises:

* Average Drop: the mean share of the probability that is lost, per cent; lower is better;
* Increase in Confidence: how many pictures have a higher probability than before, per cent.

Both are also taken with only the strongest 50 % and 15 % of the map, the rest of the picture black.
The definitions are those of Chattopadhyay et al. (https://arxiv.org/abs/1710.11063) as T-TAME's authors
measure them: the map, spread to 0..1 and resized bilinearly to the model's pictures, times the pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.table import Table
from torch.nn import functional as F

from models.console import Refused, console, plain_errors
from models.demo import shapes
from models.entries import CONFIG, read_card
from models.registry import architecture
from models.repository import shipped
from models.serving import Device, Predictor
from models.shipped import SHIPPED
from service.errors import VitrineError
from service.media.images import decode_image, to_model_input
from service.settings import Settings
from service.triton.cards import Card, ImageInput, Task

KEPT = (1.0, 0.5, 0.15)
_EXPLAINED = (Task.CLASSIFICATION, Task.EXPLANATION)
_AT_ONCE = 8
_PICTURE_SIDE = 256


@dataclass(frozen=True)
class Faithfulness:
    """The two figures, in per cent, with the strongest share `kept` of each map."""

    kept: float
    average_drop: float
    increase_in_confidence: float


def faithfulness(
    predictor: Predictor, pictures: Iterable[np.ndarray], kept: Sequence[float] = KEPT
) -> list[Faithfulness]:
    """Return the figures of a model for pictures `uint8` [3, H, W], one for each share of the map.

    Each picture is explained for its most probable class. Raises ValueError without pictures, or if the
    model makes no maps.
    """
    before: list[np.ndarray] = []
    after: list[list[np.ndarray]] = [[] for _ in kept]
    for pixels in _batches(pictures):
        answer = predictor.predict({"IMAGE": pixels, "CLASS": np.full((len(pixels), 1), -1, "i4")})
        if "HEATMAP" not in answer:
            raise ValueError("the model makes no maps of its evidence")
        rows, classes = np.arange(len(pixels)), answer["SCORES"].argmax(1)
        before.append(answer["SCORES"][rows, classes])
        for share, scores in zip(kept, after, strict=True):
            rest = masked(pixels, answer["HEATMAP"], share)
            scores.append(predictor.predict({"IMAGE": rest})["SCORES"][rows, classes])
    if not before:
        raise ValueError("there are no pictures")
    first = np.concatenate(before)
    return [
        _figures(share, first, np.concatenate(scores))
        for share, scores in zip(kept, after, strict=True)
    ]


def masked(pixels: np.ndarray, maps: np.ndarray, kept: float) -> np.ndarray:
    """Return pictures `uint8` [B, 3, H, W] times their maps [B, h, w], of which the share `kept` stays.

    Values of a resized map below its quantile are taken for 0.
    """
    size = pixels.shape[2:]
    grown = F.interpolate(
        torch.from_numpy(maps)[:, None], size, mode="bilinear", align_corners=False
    ).numpy()
    if kept < 1:
        least = np.quantile(grown, 1 - kept, axis=(1, 2, 3), keepdims=True)
        grown = np.where(grown < least, 0, grown)
    return np.rint(pixels * grown).astype(np.uint8)


def _figures(kept: float, before: np.ndarray, after: np.ndarray) -> Faithfulness:
    drops = np.maximum(before - after, 0) / np.maximum(before, 1e-12)
    return Faithfulness(kept, 100 * float(drops.mean()), 100 * float((after > before).mean()))


def _batches(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    rest = iter(pictures)
    while batch := list(islice(rest, _AT_ONCE)):
        yield np.stack(batch)


def load(id: str, repository: Path) -> tuple[Card, Predictor]:
    """Return the model `id` of a repository, or of those that ship, on the CPU.

    Raises Refused if there is none, or if its task is not one of those that are explained.
    """
    entry = repository / id / CONFIG
    with TemporaryDirectory() as folder:
        if entry.exists():
            card, place = read_card(entry), entry.parent / "1"
        elif id in SHIPPED:
            card, parts = shipped(id)
            place = Path(folder)
            for name, source in parts.items():
                (place / name).symlink_to(source)
        else:
            raise Refused(f"no model {id!r} in {repository}")
        if card.task not in _EXPLAINED:
            raise Refused(f"model {id!r} serves {card.task}; explained are {', '.join(_EXPLAINED)}")
        predictor = architecture(card.architecture).load(card, place, Device())
    if not isinstance(predictor, Predictor):
        raise Refused(f"model {id!r} answers in steps and has no map")
    return card, predictor


def drawn(count: int) -> Iterator[Image.Image]:
    """Yield `count` held-out pictures of the kind that the demo models know."""
    for number in range(count):
        yield Image.fromarray(shapes.draw(shapes.HELD_OUT + number, _PICTURE_SIDE)[0])


def command(
    model: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Pictures to measure with. Without any: drawn ones.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures to draw.")] = 100,
    repository: Annotated[
        Path | None, typer.Option(help="Where the models lie.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure how true a model's explanations are to it: Average Drop and Increase in Confidence.

    - `python -m models.faithfulness convnext-demo`
    - `python -m models.faithfulness t-tame-vit-b-16 photos/*.jpg --json`
    """
    with plain_errors(ValueError, VitrineError):
        settings = Settings()
        card, predictor = load(model, (repository or settings.repository).expanduser())
        shown = (
            (decode_image(path.read_bytes(), settings.limits) for path in pictures)
            if pictures
            else drawn(count)
        )
        inputs = (to_model_input(image, card.image or ImageInput()) for image in shown)
        found = faithfulness(predictor, inputs)
        if as_json:
            print(json.dumps([asdict(each) for each in found], indent=2))
            return
        table = Table("of the map", "Average Drop %", "Increase in Confidence %")
        for each in found:
            table.add_row(
                f"{each.kept:.0%}", f"{each.average_drop:.2f}", f"{each.increase_in_confidence:.2f}"
            )
        console.print(table)


if __name__ == "__main__":
    typer.run(command)
