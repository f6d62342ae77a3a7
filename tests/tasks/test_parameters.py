"""Parameters are checked against the card, and the refusal names what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidParameter
from service.tasks.parameters import complete
from service.triton.cards import Parameter, Task
from tests.tasks.scripted import card

MODEL = card(
    "painter",
    Task.TEXT_TO_IMAGE,
    parameters={
        "steps": Parameter(type="integer", default=30, minimum=1, maximum=100),
        "guidance": Parameter(type="number", default=5.0, minimum=0, maximum=20),
        "width": Parameter(type="integer", default=64, minimum=16, multiple_of=16),
        "height": Parameter(type="integer", default=64, choices=(64, 128)),
        "prompt": Parameter(type="string", max_length=10),
        "tiled": Parameter(type="boolean", default=False),
        "strength": Parameter(type="number", maximum=1),
    },
)


def test_what_is_absent_gets_the_card_s_default() -> None:
    assert complete(MODEL, {"steps": 7, "guidance": None, "prompt": "a star"}) == {
        "steps": 7,
        "guidance": 5.0,
        "width": 64,
        "height": 64,
        "prompt": "a star",
        "tiled": False,
        "strength": None,
    }


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("steps", 0, "integers from 1 to 100"),
        ("steps", 101, "integers from 1 to 100"),
        ("steps", 7.5, "a value of type integer"),
        ("steps", True, "a value of type integer"),
        ("guidance", 20.5, "numbers from 0 to 20"),
        ("guidance", float("nan"), "numbers from 0 to 20"),
        ("guidance", float("inf"), "numbers from 0 to 20"),
        ("guidance", "5", "a value of type number"),
        ("width", 0, "integers from 16"),
        ("width", 40, "multiples of 16"),
        ("height", 100, "one of 64, 128"),
        ("prompt", "eleven long", "at most 10 characters; given were 11"),
        ("prompt", 3, "a value of type string"),
        ("tiled", 1, "a value of type boolean"),
        ("strength", 2, "numbers up to 1"),
    ],
)
def test_a_refusal_names_the_rule(name: str, value: Any, rule: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        complete(MODEL, {name: value})
    assert caught.value.message.endswith(rule)
    assert "'painter'" in caught.value.message
    assert caught.value.param == name
    assert caught.value.status == 422


def test_an_unknown_parameter_is_told_which_there_are() -> None:
    with pytest.raises(InvalidParameter, match="no parameter 'shift'; it takes: steps, guidance"):
        complete(MODEL, {"shift": 3})


@given(st.integers(-(2**70), 2**70))
def test_exactly_the_range_is_taken(steps: int) -> None:
    if 1 <= steps <= 100:
        assert complete(MODEL, {"steps": steps})["steps"] == steps
    else:
        with pytest.raises(InvalidParameter):
            complete(MODEL, {"steps": steps})
