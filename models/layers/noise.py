"""Noise by seed, without torch: what torch's generator on CPUs gives, so that every runtime sees the same.

torch draws 32 bits for each value from a Mersenne twister (MT19937), and makes eight pairs of them at a
time into normal ones by Box's and Muller's transform.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# A graph's input of noise.
NOISE = "NOISE"
_SEEDS = 2**32
# How many values are made together: the first eight give radii, the others angles.
_GROUP = 16


def noises(seeds: np.ndarray | None, count: int, size: int) -> np.ndarray:
    """Return unit normal noise float32 [count, size], a row for each of `seeds` int64 [count, 1] (0 without)."""
    if seeds is None:
        seeds = np.zeros((count, 1), np.int64)
    return np.stack([noise(int(seed), size) for (seed,) in seeds])


@lru_cache(maxsize=64)
def noise(seed: int, size: int) -> np.ndarray:
    """Return `torch.randn(size, generator=torch.Generator().manual_seed(seed))` up to rounding.

    For sizes of at least 16; where 16 does not divide the size, the last 16 values are others.
    """
    draws = -(-size // _GROUP) * _GROUP
    bits = np.random.RandomState(seed % _SEEDS).randint(0, _SEEDS, draws, dtype=np.uint32)
    uniform = (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)  # [0, 1)
    first, second = uniform.reshape(-1, 2, _GROUP // 2).swapaxes(0, 1)
    radius = np.sqrt(-2 * np.log(1 - first))
    angle = np.float32(2 * np.pi) * second
    normal = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    drawn = normal.reshape(-1)[:size]
    drawn.flags.writeable = False
    return drawn
