"""SiT: Self-supervised vIsion Transformer (https://arxiv.org/abs/2104.03602).

A ViT learns without labels by restoring pictures of which random blocks were replaced, together with
a contrastive task, and in the first version of the paper also by telling how a picture was turned. Two networks
carry the name: that of 2021 has a token for rotation and a token for contrast in front of the patches; that of
2022 has DINO's single class token, a contrastive head on it and a restoring head on the patches. Served is the
embedding; the pretraining heads and the classifier for fine-tuning are here for checkpoints that hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.embedding._sit_network import SiTClassifier, SiTPretraining, TwoTokenSiT
from models.layers.dino_vit import DinoViT
from models.layers.embedder import Embedder
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

SIZES = ("image_size", "patch_size", "dim", "depth", "heads")

# name: (width, heads, multiply-adds at 224)
_PLAIN = {"tiny": (192, 3, 1.25e9), "small": (384, 6, 4.60e9), "base": (768, 12, 17.6e9)}

BY_HAND = "The authors share checkpoints on a shared drive only: download one by hand and add it."

# What precedes a classifier's or a pretraining task's entries in checkpoints of 2021.
_TASKS_2021 = ("rot_head.", "contrastive_head.", "convTrans.", "pre_logits_")
# Weights of the losses; no output depends on them.
_LOSSES_2021 = ("rot_w", "contrastive_w", "recons_w")


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "form": 2022,
                "image_size": 64,
                "patch_size": 8,
                "dim": 96,
                "depth": 4,
                "heads": 3,
                "head": None,
            },
            image=imagenet.squashed(64),
            notes=(
                "Trained with labels, unlike the paper's: two views of a thing are two drawings of it.",
            ),
            demo=True,
        )
    ]
    for name, (dim, heads, flops) in _PLAIN.items():
        variants.append(
            Variant(
                name,
                config={
                    "form": 2022,
                    "image_size": 224,
                    "patch_size": 16,
                    "dim": dim,
                    "depth": 12,
                    "heads": heads,
                    "head": None,
                },
                image=imagenet.evaluation(224),
                flops=int(flops),
                notes=(BY_HAND, "Of student and teacher in a checkpoint, the teacher is served."),
            )
        )
    variants.append(
        Variant(
            "base-2021",
            config={
                "form": 2021,
                "image_size": 224,
                "patch_size": 16,
                "dim": 768,
                "depth": 12,
                "heads": 12,
                "head": None,
            },
            image=imagenet.evaluation(224),
            flops=int(_PLAIN["base"][2]),
            notes=(BY_HAND, "The embedding is the contrastive token, not the rotation token."),
        )
    )
    return {variant.name: variant for variant in variants}


PAPER = Paper(
    slug="sit",
    title="SiT: Self-supervised vIsion Transformer",
    year=2021,
    arxiv="2104.03602",
)
LICENCE = Licence(code="GPL (no version stated)", weights="GPL (no version stated)")


@register
class SiTArchitecture(Architecture):
    """SiT for the embedding of pictures."""

    slug = "sit"
    title = "SiT"
    task = Task.EMBEDDING
    paper = PAPER
    origin = "own"
    licence = LICENCE
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network of 2021 or 2022 (`form`).

        `head`: None for an encoder; `pretraining` (`out_dim`, in 2022 also `hidden_dim`) or
        `classes` (`num_classes`, in 2021 also `representation_size`) for the authors' whole networks.
        """
        sizes = {name: config[name] for name in SIZES}
        head = config["head"]
        if config["form"] == 2021:
            optional = ("out_dim", "num_classes", "representation_size")
            given = {name: config[name] for name in optional if name in config}
            return TwoTokenSiT(**sizes, head=head, **given)
        sizes["table_size"] = sizes.pop("image_size")
        if head == "classes":
            return SiTClassifier(**sizes, num_classes=config["num_classes"])
        encoder = DinoViT(**sizes)
        if head is None:
            return encoder
        return SiTPretraining(encoder, hidden_dim=config["hidden_dim"], out_dim=config["out_dim"])

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open `model`, or `teacher` before `student`, and leave out what the network has no place for.

        A position table of 2021 for another size of picture is resized.
        """
        for key in ("teacher", "student"):
            if isinstance(checkpoint.get(key), Mapping):
                checkpoint = checkpoint[key]
                break
        state = unwrapped(checkpoint)
        if config["form"] == 2021:
            return _of_2021(state, config)
        if config["head"] == "pretraining":
            return state
        # Heads of pretraining stand beside `backbone`, the classifier's inside of it.
        if any(name.startswith("backbone.") for name in state):
            state = {
                name.removeprefix("backbone."): value
                for name, value in state.items()
                if name.startswith("backbone.")
            }
        if config["head"] is None:
            state = {name: value for name, value in state.items() if not name.startswith("head.")}
        return state

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Embedder(network, card, device)


def _of_2021(state: StateDict, config: Mapping[str, Any]) -> StateDict:
    head = config["head"]
    unused = {None: _TASKS_2021, "classes": ("convTrans.",), "pretraining": ()}[head]
    state = {
        name: value
        for name, value in state.items()
        if not name.startswith(unused) and name not in _LOSSES_2021
    }
    side = config["image_size"] // config["patch_size"]
    if "pos_embed" in state:
        state["pos_embed"] = _resized(state["pos_embed"], side)
    return state


def _resized(table: torch.Tensor, side: int) -> torch.Tensor:
    """Resize positions [1, 2 + n * n, C] to a grid of `side` x `side`; those of the two tokens stay."""
    old = round((table.shape[1] - 2) ** 0.5)
    if old == side:
        return table
    grid = table[:, 2:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid.float(), size=(side, side), mode="bicubic")
    patches = grid.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat((table[:, :2], patches), dim=1)
