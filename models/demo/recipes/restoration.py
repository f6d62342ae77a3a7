"""What the trainings of restorers share: how well the hidden pixels of held-out pictures are predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.demo.pictures import PictureSet
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

PSNR = "PSNR of hidden pixels, dB"
FILLED = "PSNR of hidden pixels filled with the mean of what is seen, dB"

_AT_ONCE = 50


def measure_restoration(
    slug: str, folder: Path, pictures: PictureSet, device: str, count: int
) -> dict[str, float]:
    """Return the ratio over all hidden pixels of `count` held-out pictures, each hidden in its own way, of the
    `demo` weights in `folder`, and that of the trivial answer: each picture's mean colour."""
    paper = architecture(slug)
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    shown = pictures.held_out(count).clean.transpose(0, 3, 1, 2)
    errors = np.zeros(2)
    values = 0
    for first in range(0, count, _AT_ONCE):
        planes = np.ascontiguousarray(shown[first : first + _AT_ONCE])
        seeds = np.arange(first, first + len(planes), dtype=np.int64)[:, None]
        answer = served.predict({"IMAGE": planes, "SEED": seeds})
        for picture, restored, where in zip(
            planes, answer["RESTORED"], answer["HIDDEN"].astype(bool), strict=True
        ):
            truth = picture[:, where].astype(np.float64)
            trivial = np.rint(picture[:, ~where].mean(1, keepdims=True))
            errors += [np.square(truth - guess).sum() for guess in (restored[:, where], trivial)]
            values += truth.size
    psnr = 10 * np.log10(255**2 * values / errors)
    return {PSNR: float(psnr[0]), FILLED: float(psnr[1])}
