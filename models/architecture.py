"""An architecture: one paper's network, its variants, and how its published checkpoints become a served model.

A paper's module defines one subclass and registers it (`models/registry.py`). The subclass says
what is particular to the paper; everything else (cards, repository entries, checkpoints,
demo weights, tests) is generic and works from these declarations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file

from models.serving import Device, Generator, Predictor
from models.uninitialised import Uninitialised
from service.triton.cards import (
    Card,
    ClipInput,
    ImageInput,
    Licence,
    Metric,
    Paper,
    Parameter,
    Task,
    WeightsRecord,
)

StateDict = dict[str, torch.Tensor]

# Terms of weights that the authors did not publish.
_TERMS = {"own": "set by their owner", "demo": "Apache-2.0", "random": "none"}


@dataclass(frozen=True)
class Source:
    """A stable address where the authors (or timm) publish the weights of a variant.

    `url`: `https://...` or `hf://owner/repository/path/in/repository`. `part` is the file's name in the
    model's folder (`model`, `vae`, `text_encoder`, `tokenizer`); several files of one part are joined.
    `format`: `official` names go through `Architecture.translate` (`translate_part` for other parts than
    `model`); `native` files already have this module's names; `raw` files are kept as they are, with the
    suffix of their address.
    """

    url: str
    part: str = "model"
    format: Literal["official", "native", "raw"] = "official"
    sha256: str | None = None


@dataclass(frozen=True)
class Variant:
    """One published (or demo) configuration of an architecture.

    `scale` is how many times larger an upscaler makes a picture.
    `licence` is given where its published weights are under other terms than the architecture's.
    """

    name: str
    config: Mapping[str, Any]
    image: ImageInput | None = None
    clip: ClipInput | None = None
    labels: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    metrics: tuple[Metric, ...] = ()
    flops: int | None = None
    segmentation: Literal["semantic", "panoptic", "instance", "binary"] | None = None
    things: tuple[int, ...] = ()
    scale: int | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    licence: Licence | None = None
    demo: bool = False
    default: bool = False


class Architecture(ABC):
    """One paper's network and what is particular to serving it.

    Subclasses set the class attributes and implement `network` and `serve`; `translate` when the
    published checkpoint has other names or wrapper keys than the module.
    """

    slug: ClassVar[str]
    title: ClassVar[str]
    task: ClassVar[Task]
    paper: ClassVar[Paper]
    origin: ClassVar[Literal["library", "own", "after the paper"]]
    licence: ClassVar[Licence]
    variants: ClassVar[Mapping[str, Variant]]
    cost: ClassVar[Literal["interactive", "batch"]] = "interactive"
    activation: ClassVar[Literal["softmax", "sigmoid"]] = "softmax"
    max_batch: ClassVar[int] = 16
    preferred_batches: ClassVar[tuple[int, ...]] = (4, 8, 16)
    queue_delay_us: ClassVar[int] = 2000

    @abstractmethod
    def network(self, config: Mapping[str, Any]) -> torch.nn.Module:
        """Build the network (random weights) from a variant's `config`; the number of classes is `config["num_classes"]`
        where the network has classes."""

    @abstractmethod
    def serve(
        self, network: torch.nn.Module, card: Card, device: Device, folder: Path
    ) -> Predictor | Generator:
        """Wrap a loaded network, already in eval mode on `device`, for serving. `folder` holds further parts."""

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Turn an authors' checkpoint (as unpickled) into this module's state dict.

        The default unwraps `state_dict`, `model_state_dict` or `model` and strips a `module.` prefix.
        """
        return unwrapped(checkpoint)

    def translate_part(
        self, part: str, checkpoint: Mapping[str, Any], config: Mapping[str, Any]
    ) -> StateDict:
        """Likewise for a further part with tensors (`Source.part` other than `model`), which becomes
        `<part>.safetensors`; the default unwraps as `translate` does."""
        return unwrapped(checkpoint)

    def load(self, card: Card, folder: Path, device: Device) -> Predictor | Generator:
        """Load `folder/model.safetensors` strictly into the variant's network and wrap it."""
        with Uninitialised():
            network = self.network(self.config(card.variant, len(card.labels) or None))
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return self.serve(network.float().eval().to(device.torch), card, device, folder)

    def config(self, variant: str, classes: int | None = None) -> dict[str, Any]:
        """Return the variant's config, with `num_classes` replaced where the labels say otherwise."""
        config = dict(self.variants[variant].config)
        if classes is not None and "num_classes" in config:
            config["num_classes"] = classes
        return config

    def terms(self, variant: Variant) -> Licence:
        """Return the licence of the published weights of a variant, and of the code."""
        return variant.licence or self.licence

    def card(
        self,
        variant: str,
        *,
        id: str | None = None,
        weights: WeightsRecord,
        labels: tuple[str, ...] | None = None,
        **changes: Any,
    ) -> Card:
        """Return the card of `variant` with these weights; `labels` replace the variant's own.

        Published terms and figures are those of the published weights, and stay off other cards.
        """
        chosen = self.variants[variant]
        licence = self.terms(chosen)
        official = weights.kind == "official"
        owner = _TERMS.get(weights.kind)
        return Card(
            id=id or f"{self.slug}-{variant}",
            task=self.task,
            title=self.title,
            paper=self.paper,
            origin=self.origin,
            architecture=self.slug,
            variant=variant,
            licence=Licence(code=licence.code, weights=owner) if owner else licence,
            weights=weights,
            image=chosen.image,
            clip=chosen.clip,
            labels=chosen.labels if labels is None else labels,
            members=chosen.members,
            activation=self.activation,
            segmentation=chosen.segmentation,
            things=chosen.things,
            thresholds=dict(chosen.thresholds),
            default=chosen.default,
            cost=self.cost,
            parameters=dict(chosen.parameters),
            flops=chosen.flops,
            scale=chosen.scale,
            metrics=chosen.metrics if official else (),
            notes=chosen.notes,
            **changes,
        )


def unwrapped(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the state dict inside a checkpoint: wrapper keys opened, a `module.` prefix stripped."""
    for key in ("state_dict", "model_state_dict", "model", "model_ema"):
        inner = checkpoint.get(key)
        if isinstance(inner, Mapping):
            checkpoint = inner
            break
    tensors = {k: v for k, v in checkpoint.items() if isinstance(v, torch.Tensor)}
    if tensors and all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors
