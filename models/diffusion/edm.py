"""EDM: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022).

https://arxiv.org/abs/2206.00364: the preconditioning (section 5, table 1), the noise schedule
(equation 5) and the deterministic second-order sampler (algorithm 1) that MicroDiT uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Maps a noisy float64 state [B, ...] and its noise level sigma to the denoised state, float64.
Denoiser = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Preconditioning:
    """Scales that keep the network's input and target at unit variance; `sigma_data` is the data's deviation."""

    sigma_data: float

    def skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def output(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def input(self, sigma: Tensor) -> Tensor:
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def noise_level(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the loss weight, which makes the effective weight of every noise level one."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


def noise_schedule(
    steps: int, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0
) -> list[float]:
    """Return `steps` falling noise levels from `sigma_max` to `sigma_min`, then 0. One step goes straight to 0."""
    if steps == 1:
        return [sigma_max, 0.0]
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    start, stop = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [*((start + ramp * (stop - start)) ** rho).tolist(), 0.0]


def heun_step(
    denoise: Denoiser, state: Tensor, sigma: float, sigma_next: float
) -> tuple[Tensor, Tensor]:
    """Go from `sigma` to `sigma_next`; return the next state and the denoised estimate at `sigma`.

    Euler's step is corrected by the slope at its end, except in the step to 0. `state` is float64.
    """
    denoised = denoise(state, sigma)
    slope = (state - denoised) / sigma
    reached = state + (sigma_next - sigma) * slope
    if sigma_next > 0:
        slope_there = (reached - denoise(reached, sigma_next)) / sigma_next
        reached = state + (sigma_next - sigma) * (slope + slope_there) / 2
    return reached, denoised


def heun(denoise: Denoiser, noise: Tensor, steps: int) -> Tensor:
    """Return the float64 sample that unit noise [B, ...] leads to in `steps` steps."""
    sigmas = noise_schedule(steps)
    state = noise.double() * sigmas[0]
    for sigma, sigma_next in pairwise(sigmas):
        state, _ = heun_step(denoise, state, sigma, sigma_next)
    return state
