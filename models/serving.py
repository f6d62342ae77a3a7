"""What a network must offer to be served: `Predictor` (one answer) or `Generator` (a stream).

The shared Triton backend (`models/backend.py`) does the batching, the isolation of bad items, the
errors and the cancellation; a network only computes. torch is imported by those who ask for a device:
what serves an exported graph needs none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Arrays = dict[str, np.ndarray]

# What a predictor gives for a batch: arrays, batch first; a list of one array an item where their shapes differ.
Outputs = Mapping[str, np.ndarray | list[np.ndarray]]


class InvalidInput(ValueError):
    """The caller's input cannot be processed; becomes Triton's INVALID_ARG for that request alone."""


def _float32() -> torch.dtype:
    import torch

    return torch.float32


@dataclass(frozen=True)
class Device:
    """Where and in which precision a network runs."""

    name: str = "cpu"
    dtype: torch.dtype = field(default_factory=_float32)

    @property
    def torch(self) -> torch.device:
        import torch

        return torch.device(self.name)

    def autocast(self) -> torch.autocast:
        """Mixed precision in `dtype`; does nothing for float32."""
        import torch

        return torch.autocast(
            self.torch.type,
            dtype=self.dtype if self.dtype is not torch.float32 else torch.bfloat16,
            enabled=self.dtype is not torch.float32,
        )


class Predictor(ABC):
    """A feed-forward network behind the tensors of its task (`models/signatures.py`)."""

    @abstractmethod
    def predict(self, batch: Arrays) -> Outputs:
        """Return the task's outputs for a batch.

        Every input and output has the batch as its first dimension, and all items have one shape; outputs
        of which they do not are lists of one array an item.
        Raises InvalidInput if an item cannot be processed: the backend then runs the items one by
        one, so that only the bad one fails.
        """


class Generator(ABC):
    """A network that works in steps and streams progress, previews and results."""

    @abstractmethod
    def key(self, request: Arrays) -> Hashable:
        """Return what must be equal for requests to share their steps (size, number of steps ...).

        The arrays of one request have no batch dimension. Raises InvalidInput.
        """

    @abstractmethod
    def generate(
        self, requests: Sequence[Arrays], cancelled: Callable[[int], bool]
    ) -> Iterator[tuple[int, Arrays]]:
        """Yield (index of the request, outputs without a batch dimension) as they come.

        `cancelled(i)` tells whether the caller of request `i` has gone: look at it before every
        step, and leave that request out of what follows; the others must not change by it.
        """
