"""Room for models: what the loaded ones hold, what a further one needs, and which have to go.

It is decided inside each Triton, by the catalogue: one place for any number of gateways, in sight of
the processes whose memory is meant and of the container's limit. The host's memory is measured as
each process's proportional share (PSS), that of a GPU as the models tell it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.entries import CONFIG
from models.presence import Mark, read_mark
from models.runtimes.openvino import exported, weights_file
from service.triton.cards import CATALOGUE

HOST = "host"
GPU = "gpu"
MIB = 1024 * 1024
_SHARE = 0.8
# What a model takes beside its weights, as long as it has not been measured: Python, torch, activations;
# without torch, where OpenVINO runs an exported graph.
_RUNTIME = {HOST: 350 * MIB, GPU: 600 * MIB}
_EXPORTED = 150 * MIB
# Weights may be kept in half precision and computed with in full.
_GROWTH = 2
# How long a model may take to get a process, to come, or to go, before it is no longer counted as doing so.
_STARTING_S = 30.0
_LOADING_S = 600.0
_LEAVING_S = 60.0

Sizes = dict[str, int]
"""Bytes by resource: `host`, and `gpu` for all of the server's together."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`granted`: load it now. `wait`: ask again in a moment, room is being made or models are busy.
    `too_large`: it does not fit even alone."""

    verdict: Literal["granted", "wait", "too_large"]
    needed: Sizes
    budget: Sizes


class Room:
    """The memory of one Triton. `unload` starts to unload a model and does not wait for it."""

    def __init__(
        self,
        repository: Path,
        budget: Mapping[str, int],
        unload: Callable[[str], None],
        measure: Callable[[Path], dict[str, int]] | None = None,
        mark: Callable[[Path, str], Mark | None] = read_mark,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._repository = repository
        self._budget = dict(budget)
        self._unload = unload
        self._measure = measure or host_memory
        self._mark = mark
        self._clock = clock
        self._known: dict[str, Sizes] = {}
        self._coming: dict[str, tuple[float, Sizes]] = {}
        self._leaving: dict[str, float] = {}

    def make(self, model: str, pinned: Iterable[str] = ()) -> Verdict:
        """Grant `model` its memory, or begin to unload what was not used for longest.

        Models that are in use, being loaded or `pinned` stay. A grant holds until the model is there.
        """
        now, held = self._clock(), self._held()
        budget = self._limits(held)
        needed = self._known.get(model) or self._estimate(model)
        if model in self._coming or (model in held and model not in self._leaving):
            return Verdict("granted", needed, budget)
        if any(needed[r] > budget[r] for r in needed):
            return Verdict("too_large", needed, budget)
        missing = {
            r: needed[r] + sum(size.get(r, 0) for size in held.values()) - budget[r] for r in needed
        }
        if all(bytes_ <= 0 for bytes_ in missing.values()):
            self._coming[model] = (now, needed)
            return Verdict("granted", needed, budget)
        for leaving in self._leaving.keys() & held.keys():
            missing = {r: missing[r] - held[leaving].get(r, 0) for r in missing}
        for candidate in self._unused(held, {*pinned, model}):
            if all(bytes_ <= 0 for bytes_ in missing.values()):
                break
            self._unload(candidate)
            self._leaving[candidate] = now
            missing = {r: missing[r] - held[candidate].get(r, 0) for r in missing}
        return Verdict("wait", needed, budget)

    def _held(self) -> dict[str, Sizes]:
        """Return what every model holds; one that is coming, at least what it was granted."""
        now, held = self._clock(), {}
        for model, size in self._measure(self._repository).items():
            mark = self._mark(self._repository, model)
            held[model] = {HOST: size} | ({GPU: mark.used} if mark and mark.device else {})
            granted = self._coming.get(model)
            if granted and mark and mark.last_used >= granted[0]:
                del self._coming[model]
            if mark is not None and model not in self._leaving:
                self._known[model] = held[model]
        self._coming = {
            m: granted
            for m, granted in self._coming.items()
            if now - granted[0] < (_LOADING_S if m in held else _STARTING_S)
        }
        for model, (_, granted_size) in self._coming.items():
            measured = held.get(model, {})
            held[model] = {r: max(n, measured.get(r, 0)) for r, n in granted_size.items()}
        self._leaving = {
            m: since
            for m, since in self._leaving.items()
            if m in held and m not in self._coming and now - since < _LEAVING_S
        }
        return held

    def _unused(self, held: Mapping[str, Sizes], kept: set[str]) -> list[str]:
        """Return the models that may go, the one that was not used for longest first."""
        idle: list[tuple[float, str]] = []
        for model in held.keys() - kept - self._coming.keys() - self._leaving.keys() - {CATALOGUE}:
            mark = self._mark(self._repository, model)
            if mark is not None and not mark.busy:
                idle.append((mark.last_used, model))
        return [model for _, model in sorted(idle)]

    def _limits(self, held: Mapping[str, Sizes]) -> Sizes:
        """Return the budget; that of the GPUs, where none is set, by what their models tell."""
        if GPU in self._budget:
            return self._budget
        totals = {
            mark.device: mark.total
            for model in held
            if (mark := self._mark(self._repository, model)) is not None and mark.device
        }
        # Without a model on a GPU nothing is known of it, and the first one finds it empty.
        return self._budget | {GPU: round(_SHARE * sum(totals.values())) or 1 << 62}

    def _estimate(self, model: str) -> Sizes:
        """Return what a model that was never measured may need, from the size of its weights."""
        entry = self._repository / model
        weights = sum(f.stat().st_size for f in (entry / "1").rglob("*") if f.is_file())
        try:
            on_gpu = "KIND_GPU" in (entry / CONFIG).read_text()
        except OSError:
            on_gpu = False
        if on_gpu:
            return {
                HOST: _RUNTIME[HOST] + weights,
                GPU: _RUNTIME[GPU] + _GROWTH * weights,
            }
        graphs = [weights_file(graph) for graph in exported(entry / "1").values()]
        if graphs:
            # The other file is for explanations.
            held = sum(each.stat().st_size for each in graphs)
            return {HOST: _EXPORTED + _GROWTH * held}
        return {HOST: _RUNTIME[HOST] + _GROWTH * weights}


def host_memory(repository: Path) -> dict[str, int]:
    """Return the host's memory in bytes that the models of this process's Triton hold, by model."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
            if int(status.rpartition(")")[2].split()[1]) != os.getppid():
                continue
            words = (folder / "cmdline").read_bytes().split(b"\0")
            place = Path(os.fsdecode(words[1])) if len(words) > 1 else Path()
            # <repository>/<model>/<version>/model.py
            if place.is_relative_to(repository) and place.name == "model.py":
                model = place.relative_to(repository).parts[0]
                found[model] = found.get(model, 0) + _proportional(folder)
        except (OSError, ValueError, IndexError):
            continue  # it has ended
    return found


def _proportional(process: Path) -> int:
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except PermissionError:
        pass
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def host_budget(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the share of this machine's memory, or of its container's, that models may hold."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limits.append(int((group / name).read_text()))
        except (OSError, ValueError):
            continue  # no such version of cgroups, or no limit ("max")
    return round(_SHARE * min(limits))
