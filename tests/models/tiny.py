"""A paper of our own for tests: a network of two layers, with published names, classes and parts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.serving import Arrays, Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

LABELS = ("circle", "square", "star")
IMAGE = ImageInput(height=8, width=8)


class TinyNetwork(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(image)).mean((2, 3)))


class TinyPredictor(Predictor):
    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def predict(self, batch: Arrays) -> Arrays:
        with torch.inference_mode():
            logits = self.network(torch.from_numpy(batch["IMAGE"]).float())
        return {"SCORES": logits.softmax(-1).numpy().astype(np.float32)}


def _variant(name: str, width: int, classes: int = 3, **more: Any) -> Variant:
    labels = more.pop("labels", LABELS)
    config = {"width": width, "num_classes": classes}
    return Variant(name, config=config, image=IMAGE, labels=labels, **more)


class Tiny(Architecture):
    """The official names are `patch.*`, `bn.*` and `fc.*`."""

    slug = "tiny"
    title = "Tiny"
    task = Task.CLASSIFICATION
    paper = Paper(slug="tiny", title="On tiny networks", year=2026)
    origin = "own"
    licence = Licence(code="MIT", weights="MIT")
    variants: ClassVar[Mapping[str, Variant]] = {
        v.name: v
        for v in (
            _variant("demo", 2, demo=True),
            _variant(
                "small",
                4,
                metrics=(Metric(name="top-1", value=1.0, dataset="x", origin="published"),),
            ),
            _variant("small-large-pictures", 4),
            _variant("small-many", 4, 21, labels=tuple(f"thing {i}" for i in range(21))),
            _variant("big", 16),
        )
    }

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return TinyNetwork(config["width"], config["num_classes"])

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        names = {"patch": "stem", "bn": "norm", "fc": "head"}
        state = {}
        for name, tensor in unwrapped(checkpoint).items():
            module, _, leaf = name.partition(".")
            state[f"{names.get(module, module)}.{leaf}"] = tensor
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return TinyPredictor(network)


class TinyPair(Tiny):
    """The same with a further part, the mean, which the network cannot be loaded without; non-commercial."""

    slug = "tiny-pair"
    licence = Licence(code="MIT", weights="CC-BY-NC-4.0", commercial=False)
    variants: ClassVar[Mapping[str, Variant]] = {"only": _variant("only", 4)}

    def translate_part(
        self, part: str, checkpoint: Mapping[str, Any], config: Mapping[str, Any]
    ) -> StateDict:
        return {name.removeprefix("old_"): t for name, t in unwrapped(checkpoint).items()}

    def load(self, card: Card, folder: Path, device: Device) -> Predictor:
        mean = load_file(folder / "mean.safetensors")["mean"]
        assert mean.shape == (3,), f"mean is {tuple(mean.shape)}"
        assert (folder / "note.txt").read_text() == "a note"
        return super().load(card, folder, device)  # type: ignore[return-value]


def published_at(architecture: Tiny, variant: str, *sources: Source) -> Variant:
    """Return the variant with these sources."""
    return replace(architecture.variants[variant], sources=sources)


def official_state(width: int = 4, classes: int = 3, seed: int = 0) -> StateDict:
    """Return a checkpoint's tensors under the official names."""
    torch.manual_seed(seed)
    names = {"stem": "patch", "norm": "bn", "head": "fc"}
    return {
        f"{names[name.split('.')[0]]}.{name.partition('.')[2]}": tensor
        for name, tensor in TinyNetwork(width, classes).state_dict().items()
    }


def saved(content: object, **options: Any) -> bytes:
    """Return what `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()
