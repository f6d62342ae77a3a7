"""Training of `gms-demo`: marks lesions on drawn skin.

As in the paper the autoencoder learns first, without knowing what a lesion is, and is then frozen; only the mapping
between latents is trained to segment, by the distance of the latents (of all four heads) and by the Dice
coefficient of the decoded mask. The paper's autoencoder has seen millions of photographs; ours the pictures of
skin and black-and-white masks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_f1_score

from models.demo import lesions
from models.demo.recipes import Report, half_precision, small_training_device
from models.layers.pixels import Normalisation
from models.registry import architecture
from models.segmentation.gms import GMS, probabilities
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

STEPS = 600
HELD_OUT = 300
BATCH = 8
# Of all steps, those of the autoencoder.
AUTOENCODER = 0.4
LEARNING_RATE = 2e-3
# Keeps the latents near a standard normal distribution, so that neither network need scale them.
DIVERGENCE = 1e-4


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """Train both networks, one after the other; see `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    report(0.0, "drawing pictures")
    pictures, masks = lesions.training(seed, min(lesions.COUNT, steps * BATCH))
    on = small_training_device(device)
    paper = architecture("gms")
    network = paper.network(paper.config("demo")).to(on.torch).train()
    assert isinstance(network, GMS)
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    assert card.image is not None
    normalise = Normalisation(card.image, on)

    def batch() -> tuple[Tensor, Tensor]:
        """Pictures and masks in -1..1, turned and mirrored alike."""
        chosen = rng.integers(len(pictures), size=BATCH)
        turns, mirrored = int(rng.integers(4)), rng.uniform() < 0.5
        both = [np.rot90(part[chosen], turns, (1, 2)) for part in (pictures, masks)]
        if mirrored:
            both = [part[:, :, ::-1] for part in both]
        image = normalise(np.ascontiguousarray(both[0].transpose(0, 3, 1, 2)))
        mask = torch.from_numpy(np.ascontiguousarray(both[1])).to(on.torch).float() * 2 - 1
        return image, mask[:, None].expand(-1, 3, -1, -1)

    first = max(1, round(AUTOENCODER * steps))
    autoencoder = network.vae_model
    optimiser, schedule = _optimiser(autoencoder, first)
    for step in range(first):
        image, mask = batch()
        # Half of each, as whole batches of masks would be forgotten again.
        shown = torch.cat([image[: BATCH // 2], mask[: BATCH // 2]])
        posterior = autoencoder.encode(shown).latent_dist
        rebuilt = autoencoder.decode(posterior.sample()).sample
        loss = F.l1_loss(rebuilt, shown) + DIVERGENCE * posterior.kl().mean()
        _descend(loss, autoencoder, optimiser, schedule)
        if step % 10 == 0:
            report(step / steps, f"autoencoder, step {step}/{first}, loss {loss.item():.3f}")

    autoencoder.requires_grad_(False).eval()
    optimiser, schedule = _optimiser(network.mapping_model, steps - first)
    for step in range(first, steps):
        image, mask = batch()
        with torch.no_grad():
            latent, wanted = network.encode(torch.cat([image, mask])).chunk(2)
        levels = network.mapping_model.levels(latent)
        matched = sum(
            (F.mse_loss(level, wanted) for level in levels), torch.zeros((), device=on.torch)
        )
        found = probabilities(network.decode(levels[0]))
        loss = matched / len(levels) + dice_loss(found, (mask[:, 0] + 1) / 2)
        _descend(loss, network.mapping_model, optimiser, schedule)
        if step % 10 == 0:
            report(step / steps, f"mapping, step {step}/{steps}, loss {loss.item():.3f}")

    save_file(half_precision(network), folder / "model.safetensors")
    report(1.0, "measuring")
    return measure(folder, device, min(HELD_OUT, steps * BATCH))


def dice_loss(found: Tensor, truth: Tensor) -> Tensor:
    """One less the mean Dice coefficient of probabilities [B, H, W]; of two empty masks that is 1."""
    both = (found * truth).sum((1, 2))
    return 1 - ((2 * both + 1) / (found.sum((1, 2)) + truth.sum((1, 2)) + 1)).mean()


def dice(found: Tensor, truth: Tensor) -> float:
    """Return the mean Dice coefficient of masks [B, H, W] of 0 and 1; of two empty masks that is 1."""
    return float(
        binary_f1_score(found, truth, multidim_average="samplewise", zero_division=1).mean()
    )


def measure(folder: Path, device: str = "cpu", count: int = HELD_OUT) -> dict[str, float]:
    """Return the score of the weights in `folder` on `count` held-out pictures."""
    paper = architecture("gms")
    served = paper.load(
        paper.card("demo", weights=WeightsRecord(kind="demo")), folder, Device(device)
    )
    assert isinstance(served, Predictor)
    drawn = [lesions.draw(seed) for seed in range(lesions.HELD_OUT, lesions.HELD_OUT + count)]
    pixels = np.stack([picture.transpose(2, 0, 1) for picture, _ in drawn])
    found = [
        mask
        for part in np.array_split(pixels, -(-count // 50))
        for mask in served.predict({"IMAGE": part})["MASK"]
    ]
    truth = torch.from_numpy(np.stack([mask for _, mask in drawn])).int()
    return {"Dice": dice(torch.from_numpy(np.stack(found)), truth)}


def _optimiser(
    module: torch.nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=max(steps, 2), pct_start=0.1
    )
    return optimiser, schedule


def _descend(
    loss: Tensor,
    module: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimiser.step()
    schedule.step()
