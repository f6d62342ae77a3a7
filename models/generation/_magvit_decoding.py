"""Decoding of all tokens at once, and COMMIT: conditions as corrupt inputs (MAGVIT, sections 3.2 and 3.3).

Everything is sampled in every step and the least certain is forgotten again, fewer in each, until all
stays. A condition (known frames, the part around a hole) is tokenised whole, with whatever stands in
for its unknown pixels; its tokens are only a hint: they are shown where MASK would be, and
predicted like all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.generation._magvit_transformer import Special

Mode = Literal["cond->input", "cond->cond"]

STEPS = 12
TEMPERATURE = 1.0
CHOICE_TEMPERATURE = 4.5
_LEAST_RATIO = 1e-6


def mask_ratio(progress: Tensor, places: int, schedule: str = "cosine") -> Tensor:
    """Return the share of `places` that is masked at `progress` in 0..1 (float32).

    `schedule`: `cosine`, `exp`, `uniform`, `log`, or `pow` with the exponent, such as `pow2.5`. Raises ValueError.
    """
    if schedule == "cosine":
        ratio = torch.cos(math.pi / 2 * progress)
    elif schedule == "exp":
        ratio = 1 - torch.exp2(-math.log2(places) * (1 - progress))
    elif schedule == "uniform":
        ratio = 1 - progress
    elif schedule == "log":
        ratio = -torch.log2(progress) / math.log2(places)
    elif schedule.startswith("pow"):
        ratio = 1 - progress ** float(schedule.removeprefix("pow"))
    else:
        raise ValueError(f"unknown schedule {schedule!r}: cosine, exp, uniform, log or powX")
    return ratio.clamp(_LEAST_RATIO, 1)


@dataclass(frozen=True)
class Grid:
    """A clip's tokens between two steps, all [B, t, h, w].

    `inputs` is what the network sees; `unconditional` the same with MASK in place of a condition's tokens, for
    guidance; `unknown` is true where a token will be sampled; `segments` is 1 where a condition's
    token stands at such a place.
    """

    inputs: Tensor
    unconditional: Tensor
    unknown: Tensor
    segments: Tensor


@dataclass(frozen=True)
class Commit:
    """How a condition enters: `tokens` [B, t, h, w], of which those `within` (bool, same shape) count.

    `cond->input` is COMMIT; with `cond->cond` a condition's tokens are kept as they are; without a
    mode there is no condition.
    """

    mode: Mode | None = None
    tokens: Tensor | None = None
    within: Tensor | None = None

    def start(self, batch: int, latent_shape: tuple[int, int, int]) -> Grid:
        """Return the grid of the first step, in which nothing is decided."""
        device = None if self.tokens is None else self.tokens.device
        masks = torch.full((batch, *latent_shape), int(Special.MASK), device=device)
        return self.masked(
            masks, torch.zeros(masks.shape, device=device), torch.ones(batch, device=device)
        )

    def masked(
        self, tokens: Tensor, score: Tensor, ratio: Tensor, unknown: Tensor | None = None
    ) -> Grid:
        """Forget the lowest scores [B, t, h, w]: a share `ratio` ([B] or one for all) of the places, at least one.

        With `unknown`, the places that were sampled, at least one of them stays decided.
        """
        fixed = torch.zeros_like(tokens, dtype=torch.bool)
        if self.mode == "cond->cond":
            assert self.tokens is not None
            assert self.within is not None
            fixed = self.within
            tokens = torch.where(fixed, self.tokens, tokens)
            score = score.masked_fill(fixed, math.inf)
        free = (~fixed).flatten(1).sum(1)
        count = (free * ratio.clamp(_LEAST_RATIO, 1)).floor().long()
        most = free if unknown is None else torch.minimum(free, unknown.flatten(1).sum(1) - 1)
        count = count.minimum(most).clamp(min=1)
        cut = score.flatten(1).sort(1).values.gather(1, count[:, None] - 1)
        forgotten = score <= cut[..., None, None]
        masks = torch.full_like(tokens, int(Special.MASK))
        shown, segments = masks, torch.zeros_like(tokens)
        if self.mode == "cond->input":
            assert self.tokens is not None
            assert self.within is not None
            shown = torch.where(self.within, self.tokens, masks)
            segments = (forgotten & self.within).long()
        return Grid(
            inputs=torch.where(forgotten, shown, tokens),
            unconditional=torch.where(forgotten, masks, tokens),
            unknown=forgotten,
            segments=segments,
        )

    def step(
        self,
        grid: Grid,
        logits: Tensor,
        progress: float,
        streams: Sequence[torch.Generator],
        *,
        schedule: str = "cosine",
        temperature: float = TEMPERATURE,
        choice_temperature: float = CHOICE_TEMPERATURE,
    ) -> tuple[Tensor, Grid]:
        """Sample the unknown places from logits [B, t, h, w, codes]; return all tokens and the next step's grid.

        `progress` is the number of steps with this one over all steps; after the last the tokens are the answer.
        Every sample draws from its own stream, on the CPU, so that it comes out the same in any batch.
        """
        noise = _gumbel(logits, streams)
        sampled = (logits / temperature + noise).argmax(-1)
        tokens = torch.where(grid.unknown, sampled, grid.inputs)
        sure = logits.log_softmax(-1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
        score = sure + choice_temperature * (1 - progress) * _gumbel(sure, streams)
        score = score.masked_fill(~grid.unknown, math.inf)
        ratio = mask_ratio(
            torch.tensor(progress, device=logits.device), tokens[0].numel(), schedule
        )
        return tokens, self.masked(tokens, score, ratio, grid.unknown)


def guided(logits: Tensor, unconditional: Tensor, guidance: Tensor | float) -> Tensor:
    """Return the logits moved away from the unconditional ones; guidance 0 leaves them as they are."""
    return logits + guidance * (logits - unconditional)


def _gumbel(like: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
    """Draw Gumbel noise of the shape of `like` [B, ...], each sample from its own stream."""
    tiny = torch.finfo(torch.float32).tiny
    uniform = torch.stack([torch.rand(like.shape[1:], generator=stream) for stream in streams])
    return (-(-uniform.clamp(min=tiny).log()).log()).to(like.device)
