"""Training of DRCT's demo variant: small drawn pictures to the large ones that they were made from.

The network starts as bilinear interpolation, so that it need not spend its few steps on learning what a picture is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from models.demo import details
from models.demo.recipes import Report, half_precision, small_training_device
from models.registry import architecture
from models.serving import Device, Predictor
from models.super_resolution._drct_network import DRCT
from service.tasks.reconstruct.pipeline import psnr
from service.triton.cards import WeightsRecord

STEPS = 1200
BATCH = 2
# Sides in pixels of the pictures drawn, and of the parts of the small ones that a step sees.
SIDE, PART = 96, 24
PICTURES, HELD_OUT = 400, 30
CANDIDATES = 3
LEARNING_RATE = 1.5e-3
WARM_UP = 0.1
_FAINT = 0.02


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """See `models.demo.recipes.Recipe`. Adam, squared error (what PSNR is of) and a one-cycle schedule."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    paper = architecture("drct")
    scale = paper.config("demo")["scale"]
    count = min(PICTURES, steps * BATCH)
    first = seed * PICTURES
    large, low = [], []
    for number in range(first, first + count):
        if number % 20 == 0:
            report(0.0, "drawing pictures")
        large.append(details.draw(number, SIDE))
        low.append(details.small(large[-1], scale))
    on = small_training_device(device)
    network = paper.network(paper.config("demo"))
    assert isinstance(network, DRCT)
    interpolating(network)
    network = network.to(on.torch).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=max(steps, 2), pct_start=WARM_UP
    )
    for step in range(steps):
        chosen = rng.integers(count, size=BATCH)
        inputs, truth = _parts([(low[k], large[k]) for k in chosen], scale, rng)
        with on.autocast():
            made = network(inputs.to(on.torch))
        loss = functional.mse_loss(made.float(), truth.to(on.torch))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 10 == 0:
            report(step / steps, f"step {step}/{steps}, loss {loss.item():.5f}")
    save_file(half_precision(network), folder / "model.safetensors")
    report(1.0, "measuring")
    return measure(folder, device, min(HELD_OUT, count))


@torch.no_grad()
def interpolating(network: DRCT) -> None:
    """Have the network, of a scale that is a power of 2, begin as bilinear interpolation, nearly.

    Red, green and blue go through in six channels, each colour once as it is and once negated, since of
    what is negative the activation leaves next to nothing. The other channels begin small and at random.
    """
    before, slope = network.conv_before_upsample[0], network.conv_before_upsample[1].negative_slope
    for layer, count in ((network.conv_first, 3), (before, 6), (network.conv_last, 3)):
        layer.weight[:count] *= _FAINT
        layer.bias[:count] = 0
    # Whatever the blocks find is added to the colours, so at first it is nothing.
    network.conv_after_body.weight.zero_()
    network.conv_after_body.bias.zero_()
    for colour in range(3):
        network.conv_first.weight[colour, colour, 1, 1] = 1
        before.weight[colour, colour, 1, 1] = 1
        before.weight[3 + colour, colour, 1, 1] = -1
        network.conv_last.weight[colour, colour, 1, 1] = 1 / (1 + slope)
        network.conv_last.weight[colour, 3 + colour, 1, 1] = -1 / (1 + slope)
    near = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])
    taps = torch.einsum("iy,jx->ijyx", near, near).flatten(0, 1)  # 4 places of a pixel, 3, 3
    for doubling in network.upsample[::2]:
        for channel in range(6):
            places = slice(4 * channel, 4 * channel + 4)
            doubling.weight[places] *= _FAINT
            doubling.weight[places, channel] = taps
            doubling.bias[places] = 0


def measure(folder: Path, device: str = "cpu", count: int = HELD_OUT) -> dict[str, float]:
    """Return the mean PSNR in dB on held-out pictures, and how much bicubic interpolation is below it."""
    paper = architecture("drct")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    assert card.scale is not None
    found, interpolated = [], []
    for seed in range(details.HELD_OUT, details.HELD_OUT + count):
        large = details.draw(seed, SIDE)
        low = details.small(large, card.scale)
        made = served.predict({"IMAGE": low.transpose(2, 0, 1)[None]})["IMAGE"][0]
        bicubic = Image.fromarray(low).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        found.append(psnr(large, made.transpose(1, 2, 0)))
        interpolated.append(psnr(large, np.asarray(bicubic)))
    mean, baseline = (float(np.mean(values)) for values in (found, interpolated))
    return {"PSNR": mean, "PSNR above bicubic": mean - baseline}


def _parts(
    pairs: list[tuple[np.ndarray, np.ndarray]], scale: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the same part out of both pictures of a pair, turned and mirrored at random: float32 [B, 3, ...] in 0..1.

    Of a few parts the most varied one is taken: in plain ones there is nothing to learn.
    """
    inputs, truth = [], []
    for low, large in pairs:
        places = rng.integers(0, np.array(low.shape[:2]) - PART + 1, (CANDIDATES, 2))
        y, x = max(places, key=lambda at: low[at[0] : at[0] + PART, at[1] : at[1] + PART].std())
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        for picture, factor, parts in ((low, 1, inputs), (large, scale, truth)):
            side = PART * factor
            part = picture[y * factor : y * factor + side, x * factor : x * factor + side]
            part = np.rot90(part, turns)
            parts.append(part[:, ::-1] if mirror else part)
    return _tensor(inputs), _tensor(truth)


def _tensor(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 255
