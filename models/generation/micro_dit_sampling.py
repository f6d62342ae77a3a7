"""Sampling from MicroDiT: the EDM-preconditioned denoiser with classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from models.diffusion.edm import Preconditioning
from models.generation.micro_dit_network import Conditioning, DiT

# Standard deviation of the scaled latents (the authors' code; EDM's own value for pixels is 0.5).
SIGMA_DATA = 0.9


class GuidedDenoiser:
    """Denoises a batch in which every sample has its own caption and its own guidance.

    Guidance mixes the network's raw outputs, `uncond + g * (cond - uncond)`, where the unconditional
    branch sees an all-zero caption. Samples with g <= 1 have no such branch and cost half.
    """

    def __init__(
        self,
        network: DiT,
        conditioning: Conditioning,
        guidance: Tensor,
        sigma_data: float = SIGMA_DATA,
    ) -> None:
        self.network = network
        self.conditioning = conditioning
        self.guidance = guidance
        self.scales = Preconditioning(sigma_data)
        self.guided = (guidance > 1).nonzero().flatten()
        self.branches = conditioning
        if len(self.guided):
            length = conditioning.tokens.shape[1]
            empty = guidance.new_zeros(1, length, network.config.caption_channels)
            nothing = network.condition(empty)
            self.branches = conditioning + nothing[torch.zeros_like(self.guided)]

    def subset(self, chosen: Tensor) -> GuidedDenoiser:
        """Return the denoiser of some of the samples, given by a mask or by indices."""
        return GuidedDenoiser(
            self.network,
            self.conditioning[chosen],
            self.guidance[chosen],
            self.scales.sigma_data,
        )

    def __call__(self, state: Tensor, sigma: float) -> Tensor:
        """Return the denoised float64 state [B, C, S, S]; the network works in float32."""
        level = torch.tensor(sigma, dtype=torch.float32, device=state.device)
        noisy = state.float()
        scaled = noisy * self.scales.input(level)
        rows = torch.cat([scaled, scaled[self.guided]])
        noise_level = self.scales.noise_level(level).expand(len(rows))
        output = self.network(rows, noise_level, self.branches).float()
        estimate, nothing = output[: len(state)], output[len(state) :]
        if len(self.guided):
            strength = self.guidance[self.guided].view(-1, 1, 1, 1)
            mixed = nothing + strength * (estimate[self.guided] - nothing)
            estimate = estimate.index_copy(0, self.guided, mixed)
        return (self.scales.skip(level) * noisy + self.scales.output(level) * estimate).double()
