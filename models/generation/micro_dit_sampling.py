"""Sampling from MicroDiT: the EDM-preconditioned denoiser with classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from models.generation.edm import Preconditioning
from models.generation.micro_dit import Conditioning, DiT

# Standard deviation of the scaled latents (the paper's code; EDM's own value for pixels is 0.5).
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
        self.scales = Preconditioning(sigma_data)
        self.guidance = guidance
        self.guided = (guidance > 1).nonzero().flatten()
        self.conditioning = conditioning
        if len(self.guided):
            config = network.config
            empty = conditioning.tokens.new_zeros(
                1, conditioning.tokens.shape[1], config.caption_channels
            )
            unconditional = network.condition(empty)
            self.conditioning = conditioning + unconditional[torch.zeros_like(self.guided)]

    def __call__(self, state: Tensor, sigma: float) -> Tensor:
        """Return the denoised float64 state [B, C, S, S]; the network works in float32."""
        level = torch.tensor(sigma, dtype=torch.float32, device=state.device)
        noisy = state.float()
        scaled = noisy * self.scales.input(level)
        rows = torch.cat([scaled, scaled[self.guided]])
        output = self.network(
            rows, self.scales.noise_level(level).expand(len(rows)), self.conditioning
        ).float()
        conditional, unconditional = output[: len(state)], output[len(state) :]
        if len(self.guided):
            strength = self.guidance[self.guided].view(-1, 1, 1, 1)
            mixed = unconditional + strength * (conditional[self.guided] - unconditional)
            conditional = conditional.index_copy(0, self.guided, mixed)
        denoised = self.scales.skip(level) * noisy + self.scales.output(level) * conditional
        return denoised.double()
