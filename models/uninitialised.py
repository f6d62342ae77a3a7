"""Networks that are built to be loaded: initial values nobody will see are not drawn.

Drawing takes most of the time that building a large network takes (seconds, at hundreds of millions
of weights), and a strict load then overwrites every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

# What `torch.nn.init` and the libraries' own initialisers do to a parameter in place.
_IN_PLACE = frozenset(
    (
        "add_",
        "bernoulli_",
        "clamp_",
        "copy_",
        "div_",
        "erfinv_",
        "fill_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "mul_",
        "normal_",
        "sub_",
        "uniform_",
        "zero_",
    )
)


class Uninitialised(TorchFunctionMode):
    """Within this context parameters keep whatever memory they were given; buffers are computed
    as always, since those outside of the state dict come from nowhere else."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _IN_PLACE:
            target = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **(kwargs or {}))
