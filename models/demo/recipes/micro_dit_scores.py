"""How good `micro-dit-demo` is: reconstructions, and whether a second network finds what was prompted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.demo import shapes
from models.diffusion.autoencoder import Autoencoder
from models.generation.micro_dit_generator import MicroDiT
from models.registry import architecture
from models.serving import Arrays, Device, Predictor
from models.shipped import WEIGHTS
from service.triton.cards import Card, WeightsRecord

JUDGE = "convnext-demo"
_TOGETHER = 20


def measure(folder: Path, device: str, count: int) -> dict[str, float]:
    """Score the model in `folder` on `count` held-out pictures and `count` prompts.

    The prompts name every label in turn, under the card's default settings. What was drawn is judged
    by `convnext-demo`, which was trained apart; where its weights are missing, that score is left out.
    """
    paper = architecture("micro-dit")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, MicroDiT)
    scores = {"autoencoder, PSNR in dB": reconstruction(served.autoencoder, count)}
    if (WEIGHTS / JUDGE).is_dir():
        labels = [k % len(shapes.LABELS) for k in range(count)]
        prompts = [f"{shapes.article(shapes.LABELS[k])} {shapes.LABELS[k]}" for k in labels]
        found = judged(pictures(served, card, prompts), Device(device))
        scores["prompted shape and colour found"] = float((found == np.array(labels)).mean())
    return scores


def reconstruction(autoencoder: Autoencoder, count: int) -> float:
    """Return the peak signal-to-noise ratio, in dB, of `count` held-out pictures."""
    pixels = np.concatenate(
        [shapes.batch(shapes.HELD_OUT, (count + 1) // 2, objects=n)[0] for n in (1, 2)]
    )
    latent = autoencoder.encode(torch.from_numpy(pixels))
    error = autoencoder.decode(latent).cpu().numpy().astype(np.float64) - pixels
    return float(10 * np.log10(255**2 / np.square(error).mean()))


def pictures(served: MicroDiT, card: Card, prompts: list[str]) -> np.ndarray:
    """Return one picture a prompt, uint8 [N, H, W, 3]; its position is its seed."""
    requests = [request(card, prompt, seed) for seed, prompt in enumerate(prompts)]
    drawn: dict[int, np.ndarray] = {}
    for first in range(0, len(requests), _TOGETHER):
        part = requests[first : first + _TOGETHER]
        for index, outputs in served.generate(part, lambda i: False):
            if "IMAGE" in outputs:
                drawn[first + index] = outputs["IMAGE"]
    return np.stack([drawn[k] for k in range(len(prompts))])


def request(card: Card, prompt: str, seed: int, **settings: float) -> Arrays:
    """Return a request's tensors, with the card's defaults where `settings` (by name) say nothing."""
    chosen = {n: p.default for n, p in card.parameters.items()} | {"seed": seed} | settings
    kinds = {"seed": np.int64, "guidance": np.float32}
    numbers = {
        name.upper(): np.array([chosen[name]], kinds.get(name, np.int32))
        for name in ("seed", "steps", "guidance", "width", "height")
    }
    return {"PROMPT": np.array([prompt.encode()], np.object_)} | numbers


def judged(drawn: np.ndarray, device: Device) -> np.ndarray:
    """Return the label, an index into `shapes.LABELS`, that the judge finds in each picture."""
    paper = architecture("convnext")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    judge = paper.load(card, WEIGHTS / JUDGE, device)
    assert isinstance(judge, Predictor)
    planes = np.ascontiguousarray(drawn.transpose(0, 3, 1, 2))
    return judge.predict({"IMAGE": planes})["SCORES"].argmax(axis=1)
