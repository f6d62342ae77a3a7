"""How each demo model is trained.

A recipe is a module with a function `train`, or an entry of a module's `RECIPES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from models.serving import Device

__all__ = [
    "RECIPES",
    "Recipe",
    "Report",
    "UnknownRecipe",
    "half_precision",
    "recipe",
    "small_training_device",
    "training_device",
]

# Takes the share done, 0..1, and what is being done.
Report = Callable[[float, str], None]

# Model id -> module of this package.
RECIPES = {
    "ci2p-vit-demo": "classification",
    "convit-demo": "classification",
    "convnext-demo": "classification",
    "crossvit-demo": "classification",
    "cvt-demo": "classification",
    "duoformer-demo": "classification",
    "dvt-demo": "dvt",
    "fmvit-demo": "classification",
    "gmm-vit-demo": "classification",
    "hornet-demo": "classification",
    "hyena-nd-demo": "classification",
    "mae-thorax-demo": "classification",
    "mae-thorax-encoder-demo": "mae_thorax",
    "mae-thorax-reconstruction-demo": "mae_thorax",
    "next-vit-demo": "classification",
    "s2aformer-demo": "classification",
    "shiftaddvit-demo": "classification",
    "sit-demo": "sit",
    "sit-reconstruction-demo": "sit",
    "svt-demo": "classification",
    "swin-demo": "classification",
    "t2t-vit-demo": "classification",
    "t-tame-demo": "t_tame",
    "tic-demo": "classification",
    "tinyvit-demo": "classification",
    "tnt-demo": "classification",
    "tov-vicreg-demo": "tov_vicreg",
    "turbovit-demo": "classification",
    "uniformer-demo": "classification",
    "vir-demo": "classification",
    "vit-resnas-demo": "classification",
    "eco-m2f-demo": "eco_m2f",
    "convnext-detection-demo": "detection",
    "drct-demo": "super_resolution",
    "genconvit-demo": "genconvit",
    "gms-demo": "gms",
    "kmax-deeplab-demo": "kmax_deeplab",
    "mask2former-demo": "mask2former",
    "micro-dit-demo": "micro_dit",
    "uniformer-video-demo": "video_classification",
    "uniformerv2-demo": "video_classification",
}


class UnknownRecipe(KeyError):
    """No recipe for that model; the message lists those there are."""

    def __str__(self) -> str:
        return str(self.args[0])


class Recipe(Protocol):
    """Trains a model's `demo` variant from scratch on drawn data, in `STEPS` optimiser steps."""

    STEPS: int

    def train(
        self,
        folder: Path,
        device: str,
        seed: int,
        report: Report,
        steps: int | None = None,
    ) -> dict[str, float]:
        """Write the model's parts (float16 safetensors) into `folder`, an empty directory.

        `steps` replaces `STEPS`; the rest (pictures drawn, size of
        the held-out set) shrinks with it. Returns the held-out scores of what was written.
        """
        ...


def recipe(model_id: str) -> Recipe:
    """Return the recipe of a demo model. Raises UnknownRecipe."""
    if model_id not in RECIPES:
        raise UnknownRecipe(f"no recipe for {model_id!r}; there are: {', '.join(RECIPES)}")
    module = importlib.import_module(f"{__name__}.{RECIPES[model_id]}")
    found: Recipe = getattr(module, "RECIPES", {}).get(model_id, module)
    return found


def small_training_device(name: str) -> Device:
    """Return `training_device`, but float32 on CPUs: there casting networks of a few hundred thousand
    parameters takes longer than computing in bfloat16 saves."""
    return training_device(name) if torch.device(name).type == "cuda" else Device(name)


def half_precision(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the network's state as shipped: floating-point tensors in float16, on the CPU."""
    return {
        name: value.half().cpu().contiguous() if value.is_floating_point() else value.cpu()
        for name, value in network.state_dict().items()
    }


def training_device(name: str) -> Device:
    """Return the device with bfloat16 where it computes in it faster than in float32."""
    if torch.device(name).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Device(name, torch.bfloat16 if fast else torch.float32)
