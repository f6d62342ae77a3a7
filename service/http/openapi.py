"""What the OpenAPI document says about bodies that FastAPI does not parse, and about errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from service import errors
from service.http.inputs import Kind
from service.http.preferences import SECONDS, DispatchParameters
from service.tasks.contract import TaskParameters

_BINARY = {"type": "string", "format": "binary"}
_REF = "#/$defs/"

NARROWER_CODES: dict[int, tuple[str, ...]] = {
    400: (
        "empty_body",
        "malformed_json",
        "malformed_multipart",
        "malformed_base64",
        "url_not_allowed",
        "url_failed",
        "url_timeout",
        "corrupt_image",
        "image_too_small",
        "corrupt_video",
        "no_video_stream",
        "no_frames",
        "invalid_input",
    ),
    404: ("no_model_for_task", "model_of_another_task", "file_not_found", "result_expired"),
    409: ("request_in_progress", "too_many_examples"),
    413: (
        "too_many_pixels",
        "result_too_large",
        "too_many_frames",
        "video_too_long",
        "too_complex",
    ),
    415: ("unsupported_codec",),
    422: ("missing_input",),
    401: ("missing_key", "invalid_key", "key_expired", "key_revoked"),
    429: ("queue_full", "rate_limited", "concurrency_exceeded", "too_many_queued_jobs"),
    503: (
        "model_loading",
        "model_load_failed",
        "model_restarting",
        "model_not_loaded",
        "model_unavailable",
        "memory_exhausted",
    ),
}
"""The stable codes that are narrower than their error's own, by status."""


def request_body(
    parameters: type[TaskParameters],
    kinds: Collection[Kind] = (),
    example: dict[str, Any] | None = None,
    most: int = 1,
    always_job: bool = False,
) -> dict[str, Any]:
    """Return the `openapi_extra` of an endpoint that calls `dispatch`.

    With `kinds` the medium may be the raw body, a form's file, or named in JSON, and every
    parameter may be in the query as well; without them the body is JSON. A form and JSON may hold up
    to `most` media. `mode` is no choice where the answer is `always_job`.
    """
    fields = _properties(parameters) | _properties(DispatchParameters)
    if always_job:
        del fields["mode"]
    required = list(_schema(parameters).get("required", ()))
    content: dict[str, Any] = {}
    if kinds:
        medium = " or ".join(sorted(kinds))
        for kind in sorted(kinds):
            content[f"{kind}/*"] = {"schema": _BINARY}
        file: dict[str, Any] = _BINARY | {"description": f"The {medium}."}
        if most > 1:
            file = {
                "type": "array",
                "items": _BINARY,
                "minItems": 1,
                "maxItems": most,
                "description": f"One {medium} or several, each a part of this name.",
            }
        form = {"file": file} | fields
        content["multipart/form-data"] = {
            "schema": {"type": "object", "properties": form, "required": ["file", *required]}
        }
        fields = _sources(medium, most) | fields
    json: dict[str, Any] = {
        "schema": {
            "type": "object",
            "properties": fields,
            "required": required,
            "additionalProperties": False,
        }
    }
    if example is not None:
        json["example"] = example
    content["application/json"] = json
    return {
        "requestBody": {"required": True, "content": content},
        "parameters": [*_headers(), *(_query(parameters) if kinds else ())],
    }


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of an endpoint: each status as `application/problem+json` with its codes."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        known = [kind for kind in _errors(errors.VitrineError) if kind.status == status]
        if not known:
            raise ValueError(f"no error has the status {status}")
        described = "; ".join(f"`{kind.code}`: {_first_line(kind)}" for kind in known)
        narrower = ", ".join(f"`{code}`" for code in NARROWER_CODES.get(status, ()))
        codes = [kind.code for kind in known] + list(NARROWER_CODES.get(status, ()))
        documented[status] = {
            "description": f"{described} Narrower: {narrower}." if narrower else described,
            "content": {
                "application/problem+json": {
                    "schema": {
                        "allOf": [
                            {"$ref": "#/components/schemas/Problem"},
                            {"properties": {"status": {"const": status}, "code": {"enum": codes}}},
                        ]
                    },
                    "example": known[0]("What was wrong, and which limit it broke.").problem(),
                }
            },
        }
    return documented


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add the problem's schema to FastAPI's document, put it where FastAPI documents its own error,
    and add what the guard of a route may answer."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = _PROBLEM
    for own in ("HTTPValidationError", "ValidationError"):
        schemas.pop(own, None)
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _without_null(parameter["schema"])
            operation["responses"].setdefault("500", problems(500)[500])
            if "requestBody" in operation:
                operation["responses"].setdefault("408", problems(408)[408])
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = problems(422)[422]
            if "security" in operation:
                for status, response in problems(401, 403, 421, 429, 503).items():
                    operation["responses"].setdefault(str(status), response)
    return document


_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "An error (RFC 9457). `code` is stable; `detail` is for people.",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable, for programs."},
        "detail": {"type": "string", "description": "A sentence that names what was broken."},
        "param": {"type": "string", "description": "The parameter that is wrong."},
        "limit": {"type": "object", "description": "The limit that was broken: name and value."},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that is left out where Python has None."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    return (
        schema if len(kinds) != 1 else kinds[0] | {k: v for k, v in schema.items() if k != "anyOf"}
    )


def _schema(model: Any) -> dict[str, Any]:
    schema = model.model_json_schema()
    resolved: dict[str, Any] = _inline(schema, schema.get("$defs", {}))
    return resolved


def _properties(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = _schema(model).get("properties", {})
    return found


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """Replace references into `$defs`, which has no place inside an OpenAPI document."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref", "")
    if reference.startswith(_REF):
        merged = definitions[reference.removeprefix(_REF)] | {
            key: value for key, value in node.items() if key != "$ref"
        }
        return _inline(merged, definitions)
    return {key: _inline(value, definitions) for key, value in node.items() if key != "$defs"}


def _sources(medium: str, most: int) -> dict[str, Any]:
    sources: dict[str, Any] = {
        "url": {
            "type": "string",
            "format": "uri",
            "description": f"Public URL of the {medium}, or a data URL.",
        },
        "b64": {"type": "string", "format": "byte", "description": f"The {medium} in base64."},
        "input": {
            "type": "string",
            "description": "A data URL or a URL. `image` and `video` are other names for it.",
        },
    }
    if most > 1:
        one = {"type": "string"}
        many = {"type": "array", "items": one, "minItems": 1, "maxItems": most}
        sources["input"] = {
            "oneOf": [one, many],
            "description": f"A data URL, a URL or base64 of the {medium}, or a list of up to {most}.",
        }
    return sources


def _headers() -> list[dict[str, Any]]:
    return [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The same key and request give the same answer, or the same job.",
            "schema": {"type": "string", "pattern": "^[ -~]{1,255}$"},
            "example": "order-4711",
        },
        {
            "name": "Prefer",
            "in": "header",
            "description": "`respond-async` for a job; `wait=N` to wait N seconds for the job.",
            "schema": {"type": "string"},
            "example": "wait=10",
        },
        {
            "name": "Request-Timeout",
            "in": "header",
            "description": "Seconds after which the answer is of no use. What could not be ready by then "
            "is refused at once (`overloaded`).",
            "schema": {"type": "string", "pattern": rf"^(?![0.]+$){SECONDS.pattern}$"},
            "example": "2.5",
        },
    ]


def _query(parameters: type[TaskParameters]) -> Iterator[dict[str, Any]]:
    fields = _properties(parameters) | _properties(DispatchParameters)
    for name, schema in fields.items():
        described = {key: value for key, value in schema.items() if key != "description"}
        yield {
            "name": name,
            "in": "query",
            "description": schema.get("description", ""),
            "schema": described,
        }


def _errors(base: type[errors.VitrineError]) -> Iterator[type[errors.VitrineError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _errors(kind)


def _first_line(kind: type[errors.VitrineError]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]
