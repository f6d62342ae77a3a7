"""Checks of what a caller asks of a generator against the ranges on its card."""

from __future__ import annotations

import math

import numpy as np

from models.serving import Arrays, InvalidInput
from service.triton.cards import Card


def number(request: Arrays, card: Card, name: str) -> float:
    """Return the number in tensor `NAME`, within the card's range. Raises InvalidInput, naming the range."""
    value = request[name.upper()].reshape(-1)[0].item()
    allowed = card.parameters[name]
    if allowed.choices is not None and value not in allowed.choices:
        choices = ", ".join(str(c) for c in allowed.choices)
        raise InvalidInput(f"{name} is {value:g}; {card.id} offers {choices}")
    low = -math.inf if allowed.minimum is None else allowed.minimum
    high = math.inf if allowed.maximum is None else allowed.maximum
    if not low <= value <= high:
        raise InvalidInput(f"{name} is {value:g}; it must be between {low:g} and {high:g}")
    return value


def text(request: Arrays, card: Card, name: str) -> str:
    """Return the UTF-8 text in tensor `NAME`, within the card's length in characters. Raises InvalidInput."""
    raw = np.asarray(request[name.upper()], dtype=np.object_).reshape(-1)[0]
    try:
        value = raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the {name} is not UTF-8 text") from error
    longest = card.parameters[name].max_length
    if not value.strip() or (longest is not None and len(value) > longest):
        raise InvalidInput(
            f"the {name} has {len(value.strip())} characters; it must have 1 to {longest}"
        )
    return value
