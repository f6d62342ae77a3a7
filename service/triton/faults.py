"""What an error of Triton means to a caller: the service's own errors, with stable codes.

Triton tells kinds of errors apart by their text only, streams carry no status codes at all.
"""

from __future__ import annotations

import grpc

from service.errors import (
    BadInput,
    DeadlineExceeded,
    ModelFailed,
    TritonUnavailable,
    VitrineError,
)
from service.triton.replicas import is_down

# How often a model is loaded whose process Triton took for dead meanwhile, as it does on a busy machine.
LOADS = 3
# What the backends of this project put before a refusal.
_REFUSED = "InvalidInput: "
# What gRPC says when no connection came about: the request has not left.
_NOT_CONNECTED = "failed to connect"


def is_dead(details: str) -> bool:
    """Tell whether Triton speaks of the Python process behind a model that has died, or seems to have."""
    return "Stub process" in details or "is not healthy" in details


def of_call(model: str, error: grpc.aio.AioRpcError) -> VitrineError:
    """Return what a failed call about `model` means; see `of_text` for the codes."""
    details = error.details() or ""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return late(model)
    if is_down(error):
        return down(model, begun=not details.startswith(_NOT_CONNECTED))
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return _refusal(details)
    return of_text(model, details)


def of_text(model: str, details: str) -> VitrineError:
    """Return what Triton's text about `model` means.

    `invalid_input` (the model refuses what it got), `model_restarting` (its process died), `deadline_exceeded`,
    `model_not_loaded`, else `model_failed`.
    """
    if details.startswith(_REFUSED):
        return _refusal(details)
    if is_dead(details):
        return TritonUnavailable(f"model {model!r} is restarting", code="model_restarting")
    if details.startswith("given up"):
        return late(model)
    if "unknown model" in details or "is not ready" in details or "is not found" in details:
        return TritonUnavailable(
            f"model {model!r} is not loaded", code="model_not_loaded", begun=False
        )
    return ModelFailed(f"model {model!r} failed: {details}")


def late(model: str) -> DeadlineExceeded:
    """Return the error of an answer that did not come in time."""
    return DeadlineExceeded(f"model {model!r} did not answer in time", retry_after=2.0)


def down(model: str, *, begun: bool = True) -> TritonUnavailable:
    """Return the error of a server that is not there; `begun` if the request may have reached it."""
    about = f" (model {model!r})" if model else ""
    return TritonUnavailable(f"the inference server does not answer{about}", begun=begun)


def _refusal(details: str) -> BadInput:
    return BadInput(details.removeprefix(_REFUSED), code="invalid_input")
