"""Checking parameters against their model, and saying precisely what is wrong with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from service.errors import InvalidParameter

M = TypeVar("M", bound=BaseModel)

_SHOWN = 80
_OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


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
        raise explain(error.errors(include_url=False), model.model_fields) from error


def explain(errors: list[Any], fields: Mapping[str, FieldInfo]) -> InvalidParameter:
    """Return pydantic's (or FastAPI's) findings as one error: the first in words, all in `errors`.

    `fields` are the parameters by name; of those with a range it names both ends.
    """
    findings = [_finding(error, fields) for error in errors]
    first = findings[0]
    return InvalidParameter(
        f"{first['param']}: {first['message']}.", param=first["param"], errors=findings
    )


def _finding(error: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    location = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    name = ".".join(location) or "parameters"
    kind = error["type"]
    if kind == "missing":
        return {"param": name, "message": "is required"}
    if kind == "extra_forbidden":
        return {"param": name, "message": "is no parameter of this endpoint"}
    message = error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").rstrip(".")
    if kind in _OUT_OF_RANGE and name in fields:
        message = f"must be {_range(fields[name])}"
    given = repr(error["input"])
    if len(given) > _SHOWN:
        given = given[:_SHOWN] + "…"
    return {"param": name, "message": f"{message}; given was {given}"}


def _range(field: FieldInfo) -> str:
    ends = []
    for bound in field.metadata:
        match bound:
            case Ge(ge=low):
                ends.append(f"at least {low}")
            case Gt(gt=low):
                ends.append(f"above {low}")
            case Le(le=high):
                ends.append(f"at most {high}")
            case Lt(lt=high):
                ends.append(f"below {high}")
    return " and ".join(ends)
