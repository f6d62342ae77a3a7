"""Checking parameters against their model, and saying precisely what is wrong with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.errors import InvalidParameter

M = TypeVar("M", bound=BaseModel)

_SHOWN = 80


def validate(model: type[M], parameters: Mapping[str, Any]) -> M:
    """Return the parameters as `model`. Raises InvalidParameter naming the first that is wrong."""
    for name, value in parameters.items():
        # Pydantic would take true for 1, which a JSON caller never means.
        if isinstance(value, bool) and name in model.model_fields:
            annotation = model.model_fields[name].annotation
            if annotation in (int, float, int | None, float | None):
                raise InvalidParameter(
                    f"{name}: a number is expected; given was true or false.", param=name
                )
    try:
        return model.model_validate(parameters)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)) from error


def explain(errors: list[Any]) -> InvalidParameter:
    """Return pydantic's (or FastAPI's) findings as one error: the first in words, all in `errors`."""
    findings = [_finding(error) for error in errors]
    first = findings[0]
    return InvalidParameter(
        f"{first['param']}: {first['message']}.", param=first["param"], errors=findings
    )


def _finding(error: Mapping[str, Any]) -> dict[str, Any]:
    location = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    name = ".".join(location) or "parameters"
    kind = error["type"]
    if kind == "missing":
        return {"param": name, "message": "is required"}
    if kind == "extra_forbidden":
        return {"param": name, "message": "is no parameter of this endpoint"}
    message = error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").rstrip(".")
    given = repr(error["input"])
    if len(given) > _SHOWN:
        given = given[:_SHOWN] + "…"
    return {"param": name, "message": f"{message}; given was {given}"}
