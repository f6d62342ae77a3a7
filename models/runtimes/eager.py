"""Serving in torch: as it is, or compiled."""

from __future__ import annotations

from pathlib import Path

import torch

from models.layers.graph import FeedForward
from models.registry import architecture
from models.serving import Device, Generator, Predictor
from service.triton.cards import Card


def load(
    card: Card, folder: Path, kind: str, device_id: str
) -> tuple[Predictor | Generator, Device]:
    """Load what the card describes from `folder` onto a device of Triton's (`kind` is CPU or GPU)."""
    device = device_of(kind, device_id, card)
    served = architecture(card.architecture).load(card, folder, device)
    if card.runtime == "compile" and isinstance(served, FeedForward):
        # In place, and no part of what explains: hooks need the layers one by one.
        served.graph.compile()
    return served, device


def device_of(kind: str, device_id: str, card: Card) -> Device:
    """Return the device of a Triton instance and the precision that the card asks for and the device has.

    `auto`: bfloat16 on GPUs that compute in it, float32 elsewhere.
    """
    if kind == "GPU":
        name = f"cuda:{device_id}"
        with torch.cuda.device(name):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = card.precision != "float32"
    else:
        name = "cpu"
        fast = computes_in_bfloat16()
        wanted = card.precision == "bfloat16"
    return Device(name, torch.bfloat16 if wanted and fast else torch.float32)


def computes_in_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16 that torch uses."""
    known = torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2")
    return known and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
