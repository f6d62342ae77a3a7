"""The catalogue: a small Triton model that tells the cards of every entry of its repository.

Triton gives the configuration of loaded models only; through the catalogue the gateway also knows
what could be loaded, still from Triton alone. Each row of CARDS is JSON, `[id, card]`.

Whoever gives a streamed request up names its id in WITHDRAW (models/withdrawals.py), and whoever wants
to load a model asks here first: LOAD names it, and ROOM says as JSON whether there is
memory for it (models/memory.py). A model whose process seems to have died is named in LOST: if it has,
it is unloaded, so that it can be loaded anew, and whoever else asks for the same death changes
nothing. CARDS is empty then.

It also ends processes that Triton has given up without telling. While a model is being loaded, Triton
takes a process that says nothing for a second, as on a machine with too much to do, for dead, and
then waits for its end, which never comes: the model would be loading for good. Once such a process
has ended, Triton calls the load failed, and the model can be loaded again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from models.entries import CONFIG, InvalidEntry, read_card
from models.memory import GPU, HOST, Room, host_budget
from models.presence import end, forget_dead, idle_since_start
from models.withdrawals import withdraw
from service.settings import Settings
from service.triton.cards import CATALOGUE, Card


class TritonPythonModel:
    """Triton's interface; entries are read again when their configuration changes."""

    def initialize(self, args: dict[str, str]) -> None:
        self._repository = Path(args["model_repository"]).parent
        self._read: dict[Path, tuple[int, Card | None]] = {}
        settings = Settings().triton
        budget = {HOST: settings.memory_bytes or host_budget()}
        if settings.gpu_memory_bytes:
            budget[GPU] = settings.gpu_memory_bytes
        self._pin_defaults = settings.pin_defaults
        self._start_s = settings.start_s
        self._started: set[int] = set()
        self._room = Room(self._repository, budget, pb_utils.unload_model)

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given_up = pb_utils.get_input_tensor_by_name(request, "WITHDRAW")
        if given_up is not None:
            withdraw(self._repository, given_up.as_numpy()[0].decode())
            return _response([], "")
        lost = pb_utils.get_input_tensor_by_name(request, "LOST")
        if lost is not None:
            model = lost.as_numpy()[0].decode()
            if forget_dead(self._repository, model):
                pb_utils.unload_model(model)
            return _response([], "")
        wanted = pb_utils.get_input_tensor_by_name(request, "LOAD")
        if wanted is None:
            cards = self._cards()
            self._end_stillborn(cards)
            rows = [json.dumps([card.id, card.model_dump(mode="json")]) for card in cards]
            return _response(rows, "")
        pinned = [c.id for c in self._cards() if c.default] if self._pin_defaults else []
        verdict = self._room.make(wanted.as_numpy()[0].decode(), pinned)
        return _response([], json.dumps(asdict(verdict)))

    def _end_stillborn(self, cards: list[Card]) -> None:
        """Kill the processes that were ready `start_s` ago, of models that are not."""
        for card in cards:
            idle = idle_since_start(self._repository, card.id, self._start_s) - self._started
            if not idle:
                continue
            if pb_utils.is_model_ready(card.id):
                self._started |= idle
                continue
            for process in idle:
                pb_utils.Logger.log_error(
                    f"{card.id}: process {process} is ready and Triton has not taken it up; ending it"
                )
                end(self._repository, card.id, process)

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


def _response(cards: list[str], room: str) -> Any:
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("CARDS", np.array(cards, dtype=object)),
            pb_utils.Tensor("ROOM", np.array([room], dtype=object)),
        ]
    )


def _card(entry: Path) -> Card | None:
    try:
        card = read_card(entry)
    except InvalidEntry as invalid:
        pb_utils.Logger.log_warn(str(invalid))
        return None
    return card if card.id == entry.parent.name else None
