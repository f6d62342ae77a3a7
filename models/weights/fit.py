"""Does a checkpoint fit a network? Names and shapes are compared before a weight is copied.

The network is built on the meta device, where it costs no memory, so that a checkpoint can be held
against every variant that there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.architecture import Architecture, StateDict, unwrapped

_DEPTH = 3
_WRAPPERS = re.compile(r"(module|_orig_mod|model|net|network|encoder|backbone|_model)\.")
_SHOWN = 3

# A large network takes a second to build, and several questions are asked about it.
_BLUEPRINTS: dict[tuple[type[Architecture], str], Blueprint] = {}

Candidate = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Blueprint:
    """The tensors that a network wants, and its number of parameters."""

    tensors: Mapping[str, torch.Size]
    parameters: int


@dataclass(frozen=True)
class Fit:
    """A checkpoint held against one variant. `state` has the network's names, `config` the number of classes found."""

    architecture: Architecture
    variant: str
    config: Mapping[str, Any]
    state: StateDict
    blueprint: Blueprint
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[tuple[str, torch.Size, torch.Size], ...]

    @property
    def exact(self) -> bool:
        return not (self.missing or self.unexpected or self.shapes)

    @property
    def spec(self) -> str:
        return f"{self.architecture.slug}:{self.variant}"

    @property
    def score(self) -> float:
        """The share of elements, of both sides together, that have their place: 1 is exact."""
        wanted = self.blueprint.tensors
        wrong = {name for name, _, _ in self.shapes}
        placed = sum(
            wanted[name].numel() for name in self.state if name in wanted and name not in wrong
        )
        lacking = sum(size.numel() for size in wanted.values()) - placed
        surplus = sum(self.state[name].numel() for name in (*self.unexpected, *wrong))
        return placed / max(1, placed + lacking + surplus)

    def explanation(self) -> str:
        """Say what does not fit: counts, and the first names of each kind."""
        said = []
        for kind, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                said.append(f"{len(names)} {kind} ({_some(names)})")
        if self.shapes:
            conflicts = [f"{n} is {list(have)}, not {list(want)}" for n, have, want in self.shapes]
            said.append(f"{len(self.shapes)} of another shape ({_some(conflicts)})")
        return "; ".join(said)


def blueprint(architecture: Architecture, config: Mapping[str, Any]) -> Blueprint:
    """Build the network, on the meta device where its constructor allows that, and list its tensors."""
    key = (type(architecture), repr(sorted(config.items())))
    if key not in _BLUEPRINTS:
        try:
            with torch.device("meta"):
                network = architecture.network(config)
        except (RuntimeError, NotImplementedError):  # The constructor computes with values.
            network = architecture.network(config)
        _BLUEPRINTS[key] = Blueprint(
            {name: tensor.shape for name, tensor in network.state_dict().items()},
            sum(p.numel() for p in network.parameters()),
        )
    return _BLUEPRINTS[key]


def fit(architecture: Architecture, variant: str, checkpoints: Candidate) -> Fit:
    """Hold checkpoints, joined, against one variant, with as many classes as their head has.

    What `Architecture.translate` makes of them comes first; where that is not exact, the mappings nested in a
    single checkpoint are tried as well, without the prefixes that training wrappers put before all names.
    """
    config = architecture.config(variant)
    plan = blueprint(architecture, config)
    axes = _class_axes(architecture, config)
    best: Fit | None = None
    for candidate in _candidates(checkpoints):
        state = _translated(architecture, candidate, config)
        classes = _classes(axes, state)
        fitted = _compare(architecture, variant, config, state, plan)
        if not fitted.exact and classes not in (None, config.get("num_classes")):
            resized = architecture.config(variant, classes)
            state = _translated(architecture, candidate, resized)
            fitted = _compare(
                architecture, variant, resized, state, blueprint(architecture, resized)
            )
        if fitted.exact:
            return fitted
        if best is None or fitted.score > best.score:
            best = fitted
    assert best is not None
    return best


def closest(architectures: Mapping[str, Architecture], checkpoints: Candidate) -> Fit | None:
    """Return the fit of the variant, of any of the architectures, that fits best; None without variants."""
    best: Fit | None = None
    candidates = list(_candidates(checkpoints))
    for architecture in architectures.values():
        bodies: list[Mapping[str, Any]] = []
        for variant in architecture.variants:
            # Another number of classes changes next to nothing of how much fits.
            if (body := _body(architecture, variant)) in bodies:
                continue
            bodies.append(body)
            config = architecture.config(variant)
            plan = blueprint(architecture, config)
            for candidate in candidates:
                state = _translated(architecture, candidate, config)
                fitted = _compare(architecture, variant, config, state, plan)
                if fitted.exact:
                    return fitted
                if best is None or fitted.score > best.score:
                    best = fitted
    return best


def siblings(architecture: Architecture, variant: str) -> list[str]:
    """Return the variants with the network of `variant`, itself first: other pictures or classes only."""

    body = _body(architecture, variant)
    same = [name for name in architecture.variants if _body(architecture, name) == body]
    return sorted(same, key=lambda name: name != variant)


def _body(architecture: Architecture, variant: str) -> dict[str, Any]:
    return architecture.config(variant) | {"num_classes": None}


def _compare(
    architecture: Architecture,
    variant: str,
    config: Mapping[str, Any],
    state: StateDict,
    plan: Blueprint,
) -> Fit:
    wanted = plan.tensors
    # Files older than PyTorch 0.4.1 do not hold these counters; nothing reads them when serving.
    counters = [n for n in wanted if n.endswith(".num_batches_tracked") and n not in state]
    if state:
        state = state | {name: torch.zeros(wanted[name], dtype=torch.int64) for name in counters}
    return Fit(
        architecture,
        variant,
        config,
        state,
        plan,
        missing=tuple(name for name in wanted if name not in state),
        unexpected=tuple(name for name in state if name not in wanted),
        shapes=tuple(
            (name, tensor.shape, wanted[name])
            for name, tensor in state.items()
            if name in wanted and tensor.shape != wanted[name]
        ),
    )


def _translated(
    architecture: Architecture, checkpoints: Candidate, config: Mapping[str, Any]
) -> StateDict:
    state: StateDict = {}
    for checkpoint in checkpoints:
        try:
            state |= architecture.translate(checkpoint, config)
        except Exception:  # It may rely on names that another network's checkpoint does not have.
            state |= unwrapped(checkpoint)
    return state


def _candidates(checkpoints: Candidate) -> Iterator[Candidate]:
    """Yield the checkpoints as they are; then, of a single one, every mapping in it that holds tensors."""
    yield checkpoints
    if len(checkpoints) == 1:
        for mapping in _nested(checkpoints[0], _DEPTH):
            tensors = {n: t for n, t in mapping.items() if isinstance(t, torch.Tensor)}
            yield [tensors]
            while prefix := _common_prefix(tensors):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
                yield [tensors]


def _nested(mapping: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    if any(isinstance(value, torch.Tensor) for value in mapping.values()):
        yield mapping
    if depth > 0:
        for value in mapping.values():
            if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
                yield from _nested(value, depth - 1)


def _common_prefix(tensors: Mapping[str, torch.Tensor]) -> str | None:
    first = _WRAPPERS.match(next(iter(tensors), ""))
    if first is None or not all(name.startswith(first[0]) for name in tensors):
        return None
    return first[0]


def _class_axes(
    architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, tuple[int, int, int]]:
    """Return where the number of classes shows: tensor -> (axis, factor, offset)."""
    if "num_classes" not in config:
        return {}
    low, high = 11, 17
    try:
        small, large = (
            blueprint(architecture, {**config, "num_classes": n}).tensors for n in (low, high)
        )
    except Exception:  # Not every network can have another number of classes.
        return {}
    axes = {}
    for name, size in small.items():
        for axis, (a, b) in enumerate(zip(size, large.get(name, size), strict=False)):
            factor = (b - a) // (high - low)
            if a != b and factor > 0 and factor * (high - low) == b - a:
                axes[name] = (axis, factor, a - factor * low)
    return axes


def _classes(axes: Mapping[str, tuple[int, int, int]], state: StateDict) -> int | None:
    """Return the number of classes that all heads of the checkpoint agree on."""
    found = set()
    for name, (axis, factor, offset) in axes.items():
        if name in state and state[name].dim() > axis:
            count, rest = divmod(state[name].shape[axis] - offset, factor)
            found.add(count if rest == 0 else -1)
    only = found.pop() if len(found) == 1 else -1
    return only if only > 0 else None


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
