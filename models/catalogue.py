"""The catalogue: a small Triton model that tells the cards of every entry of its repository.

Triton gives the configuration of loaded models only; through the catalogue the gateway also knows
what could be loaded, still from Triton alone. Each row of CARDS is JSON, `[id, card]`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from models.entries import CONFIG, InvalidEntry, read_card
from service.triton.cards import CATALOGUE, Card


class TritonPythonModel:
    """Triton's interface; entries are read again when their configuration changes."""

    def initialize(self, args: dict[str, str]) -> None:
        self._repository = Path(args["model_repository"]).parent
        self._read: dict[Path, tuple[int, Card | None]] = {}

    def execute(self, requests: list) -> list:
        rows = [json.dumps([card.id, card.model_dump(mode="json")]) for card in self._cards()]
        cards = pb_utils.Tensor("CARDS", np.array(rows, dtype=object))
        return [pb_utils.InferenceResponse([cards]) for _ in requests]

    def _cards(self) -> list[Card]:
        read: dict[Path, tuple[int, Card | None]] = {}
        for entry in sorted(self._repository.glob(f"*/{CONFIG}")):
            if entry.parent.name == CATALOGUE:
                continue
            try:
                changed = entry.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            known = self._read.get(entry)
            read[entry] = known if known and known[0] == changed else (changed, _card(entry))
        self._read = read
        return [card for _, card in read.values() if card is not None]


def _card(entry: Path) -> Card | None:
    try:
        card = read_card(entry)
    except InvalidEntry as invalid:
        pb_utils.Logger.log_warn(str(invalid))
        return None
    return card if card.id == entry.parent.name else None
