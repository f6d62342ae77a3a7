"""Every error the service answers with, and its two renderings.

    VitrineError 500
    ├── BadInput 400
    ├── Unauthorized 401
    ├── Forbidden 403: CrossSiteRequest
    ├── NotFound 404: ModelNotFound, ExamplesNotFound, JobNotFound
    ├── RequestTimeout 408
    ├── Conflict 409: IdempotencyConflict, ResultNotReady
    ├── PayloadTooLarge 413
    ├── UnsupportedMedia 415
    ├── Misdirected 421
    ├── InvalidParameter 422
    ├── TooManyRequests 429
    ├── ModelFailed 500
    ├── Unavailable 503: Overloaded, TritonUnavailable, RedisUnavailable, KeysUnavailable, StorageUnavailable
    ├── DeadlineExceeded 504
    ├── StorageFull 507
    └── ModelTooLarge 507

`code` is stable and part of the API; `message` is for people and names the limit that was broken.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar


class VitrineError(Exception):
    """Base of all errors that reach a caller."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.stable_code = code or self.code
        self.param = param
        self.retry_after = retry_after
        self.extra = extra

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 body (`application/problem+json`)."""
        body: dict[str, Any] = {
            "type": f"https://vitrine.dev/errors/{self.stable_code}",
            "title": self.title,
            "status": self.status,
            "code": self.stable_code,
            "detail": self.message,
        }
        if self.param is not None:
            body["param"] = self.param
        return body | self.extra

    def openai(self) -> dict[str, Any]:
        """Return the body that OpenAI's SDKs expect."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.stable_code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer (`Retry-After` where a retry can help)."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class BadInput(VitrineError):
    """The body, the media or the request cannot be read."""

    status, code, title = 400, "bad_input", "Bad input"


class Unauthorized(VitrineError):
    """No API key, or none that is known and in force."""

    status, code, title = 401, "unauthorized", "Unauthorized"

    def headers(self) -> dict[str, str]:
        return super().headers() | {"WWW-Authenticate": 'Bearer realm="vitrine"'}


class Forbidden(VitrineError):
    """The key has not the scope that the call needs."""

    status, code, title = 403, "insufficient_scope", "Forbidden"


class CrossSiteRequest(Forbidden):
    """A web page of another site sent the request, and its origin is not allowed."""

    code, title = "cross_site_request", "Cross-site request"


class Misdirected(VitrineError):
    """The gateway is not to be called by this host name."""

    status, code, title = 421, "host_not_allowed", "Misdirected request"


class InvalidParameter(VitrineError):
    """A parameter is unknown, of the wrong type or out of its range."""

    status, code, title = 422, "invalid_parameter", "Invalid parameter"


class PayloadTooLarge(VitrineError):
    """More bytes, pixels, frames or seconds than allowed."""

    status, code, title = 413, "payload_too_large", "Payload too large"


class UnsupportedMedia(VitrineError):
    """A media type or format that the endpoint does not take."""

    status, code, title = 415, "unsupported_media", "Unsupported media"


class NotFound(VitrineError):
    """No such thing, or not yours."""

    status, code, title = 404, "not_found", "Not found"


class ModelNotFound(NotFound):
    """No model of that id, or none for the task."""

    code, title = "model_not_found", "Model not found"


class ExamplesNotFound(NotFound):
    """No examples are kept under that name, or they are not yours."""

    code, title = "examples_not_found", "Examples not found"


class JobNotFound(NotFound):
    """No job of that id, or it has expired."""

    code, title = "job_not_found", "Job not found"


class RequestTimeout(VitrineError):
    """The caller did not send the whole body in time."""

    status, code, title = 408, "request_timeout", "Request timeout"


class Conflict(VitrineError):
    """The request does not fit the present state."""

    status, code, title = 409, "conflict", "Conflict"


class IdempotencyConflict(Conflict):
    """The Idempotency-Key was used before with another request."""

    code, title = "idempotency_conflict", "Idempotency conflict"


class ResultNotReady(Conflict):
    """The job has no result (yet): it runs, failed or was canceled."""

    code, title = "result_not_ready", "Result not ready"


class TooManyRequests(VitrineError):
    """A rate, concurrency or queue limit."""

    status, code, title = 429, "too_many_requests", "Too many requests"


class ModelFailed(VitrineError):
    """The model raised an error on an input that was valid."""

    status, code, title = 500, "model_failed", "Model failed"


class Unavailable(VitrineError):
    """A part of the system is down; the request may be sent again.

    `begun` is False where the request was turned away before any work was done for it, so that it
    cannot be what brought the part down.
    """

    status, code, title = 503, "unavailable", "Unavailable"

    def __init__(
        self, message: str, *, retry_after: float = 2.0, begun: bool = True, **extra: Any
    ) -> None:
        super().__init__(message, retry_after=retry_after, **extra)
        self.begun = begun


class Overloaded(Unavailable):
    """The model has more requests than it can answer in time."""

    code, title = "overloaded", "Overloaded"


class TritonUnavailable(Unavailable):
    """Triton does not answer or the model is being loaded."""

    code, title = "inference_unavailable", "Inference unavailable"


class RedisUnavailable(Unavailable):
    """The queue's Redis does not answer."""

    code, title = "queue_unavailable", "Queue unavailable"


class KeysUnavailable(Unavailable):
    """The API key cannot be looked up at the moment."""

    code, title = "keys_unavailable", "Keys unavailable"


class StorageUnavailable(Unavailable):
    """The object storage does not answer or is read-only."""

    code, title = "storage_unavailable", "Storage unavailable"


class StorageFull(VitrineError):
    """The object storage has no room."""

    status, code, title = 507, "storage_full", "Storage full"


class ModelTooLarge(VitrineError):
    """The model does not fit into the memory for models, even alone."""

    status, code, title = 507, "model_too_large", "Model too large"


class DeadlineExceeded(VitrineError):
    """The answer was not ready within the request's deadline."""

    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"
