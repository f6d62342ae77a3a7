"""From a checkpoint that fits to `safetensors` in the network's own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from models.architecture import Architecture, StateDict
from models.registry import architectures
from models.weights.errors import WeightsError, WrongArchitecture
from models.weights.fit import Fit, closest, fit, siblings

Storage = Literal["keep", "float16", "bfloat16", "float32"]
_KEPT = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Converted:
    """The written file's variant, number of classes (None: the network has none) and of parameters."""

    variant: str
    classes: int | None
    parameters: int
    warnings: tuple[str, ...]


def convert(
    checkpoints: Sequence[Mapping[str, Any]],
    architecture: Architecture,
    variant: str | None,
    target: Path,
    storage: Storage = "keep",
) -> Converted:
    """Write `checkpoints`, joined, to `target` for `variant`, or for the variant of `architecture` that fits.

    Raises WrongArchitecture with the first names that do not fit and the variant that does, and WeightsError
    if the precision to store them in cannot hold the values.
    """
    fitted, said = _fitting(checkpoints, architecture, variant)
    state = {name: _cast(name, tensor, storage) for name, tensor in fitted.state.items()}
    save_file(separate(state), target, metadata={"format": "pt"})
    return Converted(
        fitted.variant,
        fitted.config.get("num_classes"),
        fitted.blueprint.parameters,
        (*said, *_not_finite(state)),
    )


def _fitting(
    checkpoints: Sequence[Mapping[str, Any]], architecture: Architecture, variant: str | None
) -> tuple[Fit, list[str]]:
    """Return the fit and what to say about it."""
    if variant is not None:
        fitted = fit(architecture, variant, checkpoints)
        if fitted.exact:
            return fitted, []
    else:
        near = closest({architecture.slug: architecture}, checkpoints)
        first = near.variant if near is not None else next(iter(architecture.variants))
        same = siblings(architecture, first)
        fits = [fit(architecture, name, checkpoints) for name in same]
        fitted = min(fits, key=lambda f: (not f.exact, not _own_classes(f)))
        if fitted.exact:
            others = [f"{architecture.slug}:{name}" for name in same if name != fitted.variant]
            said = f"taken as {fitted.spec}; its tensors also fit {', '.join(others)}"
            return fitted, [said] if others else []
    message = f"the checkpoint does not fit {fitted.spec}: {fitted.explanation()}"
    other = closest(architectures(), checkpoints)
    if not fitted.state:
        message = f"there are no tensors in the checkpoint where {fitted.spec} looks for them"
    elif other is not None and other.score > max(0.5, fitted.score):
        message += f". This looks like {other.spec}"
    raise WrongArchitecture(message)


def _own_classes(fitted: Fit) -> bool:
    own = fitted.architecture.variants[fitted.variant].config
    return bool(own.get("num_classes") == fitted.config.get("num_classes"))


def _cast(name: str, tensor: torch.Tensor, storage: Storage) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    if storage == "keep":
        return tensor if tensor.dtype in _KEPT else tensor.float()
    cast = tensor.to(getattr(torch, storage))
    if storage == "float16" and bool((cast.isinf() & ~tensor.isinf()).any()):
        raise WeightsError(
            f"{name} has values beyond float16's 65504; use bfloat16, or keep the precision"
        )
    return cast


def separate(state: StateDict) -> StateDict:
    """Give tensors that share memory (tied weights, views) a copy each, as safetensors wants it."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        alone = storage.data_ptr() not in seen and storage.nbytes() == tensor.nbytes
        seen.add(storage.data_ptr())
        separate[name] = tensor.contiguous() if alone else tensor.clone().contiguous()
    return separate


def _not_finite(state: StateDict) -> list[str]:
    bad = [n for n, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if not bad:
        return []
    return [
        f"{len(bad)} tensors hold values that are not finite ({', '.join(bad[:3])}"
        f"{', …' if len(bad) > 3 else ''}); answers may be NaN"
    ]
