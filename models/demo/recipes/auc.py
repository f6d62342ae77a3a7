"""The area under the curve of true over false positives."""

from __future__ import annotations

import numpy as np


def auc(negative: np.ndarray, positive: np.ndarray) -> float:
    """Return the share of pairs in the right order, ties counting half; nan without a pair."""
    higher = (positive[:, None] > negative[None, :]).mean()
    return float(higher + 0.5 * (positive[:, None] == negative[None, :]).mean())
