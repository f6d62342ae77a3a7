"""The optimisation that trainings of small networks share: AdamW, one cycle of the learning rate, clipped gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from models.demo.recipes import Report

WARM_UP = 0.1


def descend(
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[], torch.Tensor],
    steps: int,
    report: Report,
    *,
    learning_rate: float,
    weight_decay: float = 0.05,
    warm_up: float = WARM_UP,
    shares: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Take `steps` steps down `loss`, which draws its own batch at each call.

    `warm_up`: share of the steps in which the learning rate rises. `shares`: which part of the whole training these steps are, for the report.
    """
    trained = list(parameters)
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=max(steps, 2), pct_start=warm_up
    )
    start, end = shares
    for step in range(steps):
        now = loss()
        optimiser.zero_grad(set_to_none=True)
        now.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step % 10 == 0:
            done = start + (end - start) * step / steps
            report(done, f"step {step}/{steps}, loss {now.item():.4g}")
