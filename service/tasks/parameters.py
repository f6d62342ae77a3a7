"""Parameters against a model's card: what it takes, in which range, and what it takes by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.errors import InvalidParameter
from service.triton.cards import Card, Parameter

_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
}


def complete(card: Card, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given` with the card's defaults for what is None or absent.

    Raises InvalidParameter for a parameter that the card does not have, or a value that it does not
    allow; the message names what is allowed.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name not in card.parameters:
            takes = ", ".join(card.parameters) or "none"
            raise InvalidParameter(
                f"model {card.id!r} has no parameter {name!r}; it takes: {takes}", param=name
            )
        _check(card, name, value, card.parameters[name])
    defaults = {name: rule.default for name, rule in card.parameters.items()}
    return defaults | {name: value for name, value in given.items() if value is not None}


def _check(card: Card, name: str, value: Any, rule: Parameter) -> None:
    wrong = _broken_rule(value, rule)
    if wrong is not None:
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        raise InvalidParameter(f"{name} = {shown}: model {card.id!r} takes {wrong}", param=name)


def _broken_rule(value: Any, rule: Parameter) -> str | None:
    """Return in words the rule that `value` breaks, or None."""
    boolean = isinstance(value, bool)
    # To Python, true is an integer; to a caller it is not.
    if not isinstance(value, _TYPES[rule.type]) or boolean != (rule.type == "boolean"):
        return f"a value of type {rule.type}"
    if rule.choices is not None and value not in rule.choices:
        return f"one of {', '.join(map(str, rule.choices))}"
    if isinstance(value, int | float):
        low, high = rule.minimum, rule.maximum
        # Written so that NaN, which compares with nothing, is outside every range.
        inside = (low is None or value >= low) and (high is None or value <= high)
        if not inside:
            return _range(rule)
        if rule.multiple_of is not None and value % rule.multiple_of:
            return f"multiples of {rule.multiple_of}"
    if isinstance(value, str) and rule.max_length is not None and len(value) > rule.max_length:
        return f"at most {rule.max_length} characters; given were {len(value)}"
    return None


def _range(rule: Parameter) -> str:
    kind = "integers" if rule.type == "integer" else "numbers"
    low, high = (None if b is None else f"{b:.17g}" for b in (rule.minimum, rule.maximum))
    if low is None:
        return f"{kind} up to {high}"
    return f"{kind} from {low}" if high is None else f"{kind} from {low} to {high}"
