"""MicroDiT behind Triton: prompts to pictures, several callers sharing every step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from models.diffusion import settings
from models.diffusion.autoencoder import Autoencoder
from models.diffusion.clip_text import TextEncoder
from models.diffusion.edm import heun_step, noise_schedule
from models.generation.micro_dit_network import DiT
from models.generation.micro_dit_sampling import GuidedDenoiser
from models.serving import Arrays, Device, Generator, InvalidInput
from service.triton.cards import Card

# A preview is the decoded estimate of the final picture; at most this many are sent on the way.
PREVIEWS = 3


class MicroDiT(Generator):
    """TEXT_TO_IMAGE for requests of one number of steps and one size; prompt, seed and guidance are each one's own.

    A request's noise comes from its own seed alone, on the CPU, so the picture depends neither on the
    device nor on the requests it shared its steps with (up to rounding). Seed 0 is a seed like any other;
    the authors' code takes it for "none".
    """

    def __init__(
        self,
        network: DiT,
        text_encoder: TextEncoder,
        autoencoder: Autoencoder,
        card: Card,
        device: Device,
    ) -> None:
        self.network = network
        self.text_encoder = text_encoder
        self.autoencoder = autoencoder
        self.card = card
        self.device = device

    def key(self, request: Arrays) -> Hashable:
        """Return (steps, width, height). Raises InvalidInput for anything outside the card's ranges."""
        self.text_encoder.tokenizer([settings.text(request, self.card, "prompt")])
        steps, width, height, _, _ = (
            settings.number(request, self.card, name)
            for name in ("steps", "width", "height", "guidance", "seed")
        )
        if width != height:
            raise InvalidInput(f"the size is {width} x {height}; only squares can be made")
        return steps, width, height

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Arrays], cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, Arrays]]:
        steps = int(settings.number(requests[0], self.card, "steps"))
        live = torch.arange(len(requests))
        sigmas = noise_schedule(steps)
        state = self._noise(requests).double() * sigmas[0]
        denoise = self._denoiser(requests)
        every = max(1, -(-steps // (PREVIEWS + 1)))
        for step in range(steps):
            going = torch.tensor([not cancelled(int(i)) for i in live])
            if not going.any():
                return
            if not going.all():
                live, state, denoise = live[going], state[going], denoise.subset(going)
            with self.device.autocast():
                state, denoised = heun_step(denoise, state, sigmas[step], sigmas[step + 1])
            preview = (step + 1) % every == 0 and step + 1 < steps
            pictures = self.autoencoder.decode(denoised).cpu().numpy() if preview else None
            for row, index in enumerate(live.tolist()):
                yield index, {"PROGRESS": np.array([step + 1, steps], np.float32)}
                if pictures is not None:
                    yield index, {"PREVIEW": pictures[row]}
        for row, index in enumerate(live.tolist()):
            if not cancelled(index):
                picture = self.autoencoder.decode(state[row : row + 1])[0]
                yield index, {"IMAGE": picture.cpu().numpy()}

    def _noise(self, requests: Sequence[Arrays]) -> Tensor:
        """Return unit noise [B, C, S, S], each sample from its own seed."""
        config = self.network.config
        shape = (config.in_channels, config.input_size, config.input_size)
        generators = [
            torch.Generator().manual_seed(int(settings.number(request, self.card, "seed")))
            for request in requests
        ]
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return noise.to(self.device.torch)

    def _denoiser(self, requests: Sequence[Arrays]) -> GuidedDenoiser:
        prompts = [settings.text(request, self.card, "prompt") for request in requests]
        strengths = [settings.number(request, self.card, "guidance") for request in requests]
        guidance = torch.tensor(strengths, dtype=torch.float32, device=self.device.torch)
        with self.device.autocast():
            conditioning = self.network.condition(self.text_encoder.encode(prompts))
            return GuidedDenoiser(self.network, conditioning, guidance)
