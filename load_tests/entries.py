"""Repository entries that only benchmarks need: published sizes with random weights."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.registry import architecture
from models.repository import write_entry
from service.triton.cards import WeightsRecord


def write_random(repository: Path, id: str, slug: str, variant: str) -> None:
    """Write the entry `id`: a published variant whose weights are drawn from a fixed seed."""
    made = architecture(slug)
    torch.manual_seed(0)
    network = made.network(made.config(variant))
    card = made.card(variant, id=id, weights=WeightsRecord(kind="random"))
    with tempfile.TemporaryDirectory(dir=repository.parent) as folder:
        weights = Path(folder) / "model.safetensors"
        save_file(network.state_dict(), weights)
        write_entry(repository, card.model_copy(update={"default": False}), {weights.name: weights})


def main() -> None:
    """Write `ID=ARCHITECTURE:VARIANT ...` into the data directory that is the last argument."""
    *wanted, directory = sys.argv[1:]
    repository = Path(directory) / "repository"
    repository.mkdir(parents=True, exist_ok=True)
    for entry in wanted:
        id, _, network = entry.partition("=")
        slug, _, variant = network.partition(":")
        write_random(repository, id, slug, variant)


if __name__ == "__main__":
    main()
