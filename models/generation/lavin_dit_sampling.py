"""LaVin-DiT's sampling: Euler steps from noise to the answer, guided by the examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.generation.lavin_dit_network import LaVinDiT

# Half of the knots lie below this time, where the coarse shape of the answer is decided.
_EARLY = 0.05


def knots(points: int = 20) -> tuple[float, ...]:
    """Return `points` times from 0 to 1, between which the steps go.

    The first half is evenly spaced up to 0.05, the second grows quadratically; at 20, 30 and 40 points they are
    those of the authors' tables. Raises ValueError unless `points` is even and at least 4.
    """
    if points < 4 or points % 2:
        raise ValueError(f"{points} knots are not an even number from 4")
    half = points // 2
    early = torch.linspace(0, _EARLY, half, dtype=torch.float64)
    late = _EARLY + (1 - _EARLY) * torch.linspace(1 / points, 1, half, dtype=torch.float64) ** 2
    return tuple(round(time, 4) for time in torch.cat([early, late]).tolist())


def without_examples(cond: Tensor) -> Tensor:
    """Return the condition [B, C, 2, H, W] that names no task: a frame of zeros, then the query."""
    query = cond[:, :, -1:]
    return torch.cat([torch.zeros_like(query), query], dim=2)


def guided_velocity(
    network: LaVinDiT, x: Tensor, time: Tensor, cond: Tensor, guidance: float
) -> Tensor:
    """Return the velocity without examples plus `guidance` times what the examples change.

    Shapes are those of `LaVinDiT.forward`. The two passes have sequences of different lengths.
    """
    velocity = network(x, time, cond)
    if guidance == 1:
        return velocity
    plain = network(x, time, without_examples(cond))
    return plain + guidance * (velocity - plain)


def sample(
    network: LaVinDiT,
    noise: Tensor,
    cond: Tensor,
    guidance: float = 1.5,
    times: Sequence[float] | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Return the answer's latents [B, C, T, H, W].

    `noise` is their start, `cond` [B, C, frames, H, W] the examples and the query, `times` the knots (default: 20).
    `on_step` is told each step from 0 and the state at its end; what it raises ends the sampling.
    """
    x = noise
    for step, (now, then) in enumerate(itertools.pairwise(times or knots())):
        time = torch.full((len(x),), now, device=x.device)
        x = x + (then - now) * guided_velocity(network, x, time, cond, guidance)
        if on_step is not None:
            on_step(step, x)
    return x
