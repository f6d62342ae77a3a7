"""ENAT's sampling: codes are revealed in a few steps, the most certain ones first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.generation.enat_network import ENAT, Reusable

# Uniform numbers stay this far from 0 and 1, where Gumbel noise is infinite.
_MARGIN = 1e-6
_COLDEST = 1e-3

Draws = Callable[[int], tuple[Tensor, Tensor]]
"""Gives a step's uniform numbers in [0, 1): for codes [B, L, codes] and for confidences [B, L]."""


@dataclass(frozen=True)
class Schedule:
    """Settings of the sampling; the defaults are the authors' at 256 pixels (at 512: 4.0 and 3.5).

    Guidance grows linearly over the steps, from none at the first, and never reaches `guidance`;
    both temperatures fall linearly to zero.
    """

    steps: int = 8
    mask_temperature: float = 1.5
    sampling_temperature: float = 6.0
    guidance: float = 2.5

    def masked_after(self, step: int, codes: int) -> int:
        """Return how many of `codes` stay masked after `step` (from 0): a cosine, none after the last."""
        return math.floor(codes * math.cos((step + 1) / self.steps * math.pi / 2))

    def remaining(self, step: int) -> float:
        """Return what the temperatures are multiplied with at `step`."""
        return 1 - (step + 1) / self.steps

    def guidance_at(self, step: int) -> float:
        """Return the weight of the difference that the class makes, added to the conditional logits."""
        return step / self.steps * self.guidance


def seeded(network: ENAT, seeds: Sequence[int]) -> Draws:
    """Return draws on the CPU in which each sample depends on its own seed alone."""
    config = network.config
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    length = config.latent_size**2

    def draw(step: int) -> tuple[Tensor, Tensor]:
        pairs = [
            (
                torch.rand(length, config.codebook_size, generator=generator),
                torch.rand(length, generator=generator),
            )
            for generator in generators
        ]
        codes, confidences = zip(*pairs, strict=True)
        return torch.stack(codes), torch.stack(confidences)

    return draw


def sample(
    network: ENAT,
    labels: Tensor,
    schedule: Schedule,
    draws: Draws,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Return codes [B, side, side] for classes [B].

    `on_step` is told each step from 0 and the ids [B, L] at its end (some still `mask_id`); what it raises
    ends the sampling.
    """
    side = network.config.latent_size
    ids = torch.full((len(labels), side**2), network.mask_id, device=labels.device)
    # The null class keeps its own features; both passes are one batch, as their masks agree.
    nothing = torch.full_like(labels, network.no_class)
    both = torch.cat([labels, nothing]) if schedule.guidance else labels
    previous: Reusable | None = None
    for step in range(schedule.steps):
        weight = schedule.guidance_at(step)
        if step == 0:
            # Unguided, and it leaves nothing to reuse, since nothing is visible.
            logits, _ = network(ids, labels)
        else:
            repeated = ids.repeat(len(both) // len(ids), 1)
            logits, previous = network(repeated, both, previous)
        if len(logits) > len(ids):
            conditional, unconditional = logits.float().chunk(2)
            logits = conditional + weight * (conditional - unconditional)
        for_codes, for_confidences = (noise.to(ids.device) for noise in draws(step))
        ids = _revealed(network, ids, logits.float(), schedule, step, for_codes, for_confidences)
        if on_step is not None:
            on_step(step, ids)
    return ids.view(-1, side, side)


def _revealed(
    network: ENAT,
    ids: Tensor,
    logits: Tensor,
    schedule: Schedule,
    step: int,
    for_codes: Tensor,
    for_confidences: Tensor,
) -> Tensor:
    """Draw codes where `ids` is masked, and mask those again that are least certain."""
    remaining = schedule.remaining(step)
    logarithms = logits.log_softmax(-1)
    temperature = max(schedule.sampling_temperature * remaining, _COLDEST)
    drawn = (logarithms / temperature + _gumbel(for_codes)).argmax(-1)
    masked = ids == network.mask_id
    drawn = torch.where(masked, drawn, ids)
    certainty = logarithms.gather(-1, drawn.unsqueeze(-1)).squeeze(-1).double()
    certainty = certainty.masked_fill(~masked, math.inf)
    noise = _gumbel(for_confidences.clamp(_MARGIN, 1 - _MARGIN).double())
    order = (certainty + schedule.mask_temperature * remaining * noise).argsort(dim=-1)
    again = order[:, : schedule.masked_after(step, ids.shape[1])]
    return drawn.scatter(1, again, network.mask_id)


def _gumbel(uniform: Tensor) -> Tensor:
    return -torch.log(-torch.log(uniform.clamp(_MARGIN, 1 - _MARGIN)))
