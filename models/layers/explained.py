"""What every network that explains itself has in common: which class is asked for, and maps in 0..1."""

from __future__ import annotations

import numpy as np
import torch

from models.serving import Arrays, InvalidInput

# Keeps a map without any contrast from dividing by zero.
_LEAST_RANGE = 1e-10


def wanted_classes(batch: Arrays, count: int, num_classes: int) -> torch.Tensor:
    """Return CLASS [B, 1] of a batch as int64 [B]; -1, also where it is absent: the most probable class.

    Raises InvalidInput for a class that the network does not have.
    """
    classes = batch.get("CLASS")
    if classes is None:
        return torch.full((count,), -1)
    wrong = classes[(classes < -1) | (classes >= num_classes)]
    if wrong.size:
        raise InvalidInput(
            f"class {wrong[0]}: this model has classes 0 to {num_classes - 1}, and -1 for the most "
            "probable one"
        )
    return torch.tensor(classes[:, 0], dtype=torch.int64)


def spread(maps: torch.Tensor) -> torch.Tensor:
    """Return maps [B, h, w] with each one's least value at 0 and its greatest at 1."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + _LEAST_RANGE)


def named(method: str, count: int) -> np.ndarray:
    """Return METHOD [B, 1], the name of the method that made the maps."""
    return np.full((count, 1), method.encode(), dtype=object)
