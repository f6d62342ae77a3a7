"""Golden files: their format, and the weights and inputs that they stand for.

A file is one JSON object:

    seed        the paper's slug
    variant     the reference's name of the configuration
    config      how the reference was constructed
    state       [[name, shape], ...]: the floating-point entries of its state dict
    inputs      {name: {seed, shape, distribution: normal | uniform | integers, high?}}
    outputs     {name: {shape, mean, std, stride, sample}}
    notes       what the numbers do not say

No weight is stored. The value of an entry depends on its name and shape only, an input on its seed
and shape, both through NumPy's `RandomState`, whose streams are frozen for good.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Normal numbers are drawn in pieces, so that a layer of hundreds of millions of weights needs
# little more memory than itself; the stream is the same as in one draw.
PIECE = 1 << 22


@dataclass(frozen=True)
class Record:
    """What the reference computed for one output: every `stride`-th value of the flattened tensor."""

    shape: tuple[int, ...]
    std: float
    stride: int
    sample: np.ndarray


@dataclass(frozen=True)
class Golden:
    """One golden file."""

    slug: str
    variant: str
    config: Mapping[str, Any]
    state: tuple[tuple[str, tuple[int, ...]], ...]
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, Record]
    notes: str

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Read a file. Raises OSError, ValueError or KeyError if it is no golden file."""
        content = json.loads(path.read_text())
        return cls(
            slug=content["seed"],
            variant=content["variant"],
            config=content["config"],
            state=tuple((name, tuple(shape)) for name, shape in content["state"]),
            inputs=content["inputs"],
            outputs={
                name: Record(
                    tuple(record["shape"]),
                    record["std"],
                    record["stride"],
                    np.asarray(record["sample"], dtype=np.float64),
                )
                for name, record in content["outputs"].items()
            },
            notes=content.get("notes", ""),
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a state entry. Raises KeyError."""
        return dict(self.state)[name]

    def count(self, pattern: str) -> int:
        """Return how many modules are numbered in the state; `pattern` captures the number."""
        numbers = [int(found[1]) for name, _ in self.state if (found := re.match(pattern, name))]
        return 1 + max(numbers, default=-1)

    def weights(
        self, *, prefixes: tuple[str, ...] = ("",), without: tuple[str, ...] = ()
    ) -> dict[str, torch.Tensor]:
        """Return the values of the entries that start with one of `prefixes`.

        Entries that start with one of `without` are left out and never drawn (weights that the
        reference holds but does not use, buffers that keep their constructed values).
        """
        wanted = {
            name: shape
            for name, shape in self.state
            if name.startswith(prefixes) and not (without and name.startswith(without))
        }
        # Drawing lets other threads run.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(wanted, pool.map(entry, wanted, wanted.values()), strict=True))

    def input(self, name: str) -> torch.Tensor:
        """Return one input. Raises KeyError."""
        recipe = self.inputs[name]
        stream = np.random.RandomState(recipe["seed"])
        shape = tuple(recipe["shape"])
        match recipe["distribution"]:
            case "integers":
                return torch.from_numpy(
                    stream.randint(0, recipe["high"], shape).astype(np.int64, copy=False)
                )
            case "normal":
                return torch.from_numpy(np.asarray(stream.standard_normal(shape), np.float32))
            case "uniform":
                return torch.from_numpy(np.asarray(stream.random_sample(shape), np.float32))
            case unknown:
                raise ValueError(f"input {name!r}: unknown distribution {unknown!r}")


def entry(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the float32 value of the state entry `name`.

    Variances lie around 1 and positive; running means and biases of vectors are small; other
    vectors (gains) lie around 1; weight tensors are scaled by their fan-in; the rest has std 0.5.
    """
    value = _normal(zlib.crc32(name.encode()), shape)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        value = np.float32(1.0) + np.float32(0.1) * np.abs(value)
    elif leaf == "running_mean" or (len(shape) <= 1 and leaf.endswith("bias")):
        value *= np.float32(0.1)
    elif len(shape) <= 1:
        value *= np.float32(0.1)
        value += np.float32(1.0)
    elif leaf.endswith("weight"):
        value /= np.float32(math.sqrt(math.prod(shape[1:])))
    else:
        value *= np.float32(0.5)
    return torch.from_numpy(value)


def load(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Load `weights` into `module`, put it in eval mode and return it.

    Raises RuntimeError unless every weight is taken and every floating-point entry of the module
    is given (counters such as `num_batches_tracked` are not recorded).
    """
    missing, unexpected = module.load_state_dict(weights, strict=False)
    own = module.state_dict()
    missing = [name for name in missing if own[name].is_floating_point()]
    if missing or unexpected:
        raise RuntimeError(f"missing {missing[:5]}, unexpected {unexpected[:5]}")
    return module.eval()


def _normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    stream = np.random.RandomState(seed)
    values = np.empty(math.prod(shape), dtype=np.float32)
    for start in range(0, values.size, PIECE):
        part = values[start : start + PIECE]
        part[:] = stream.standard_normal(part.size)
    return values.reshape(shape)
