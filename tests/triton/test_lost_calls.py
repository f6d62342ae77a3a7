"""What gRPC and Triton say when a call fails: which of it means that no server answered."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from service.triton.replicas import is_down


@pytest.mark.parametrize(
    ("code", "details", "down"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses", True),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", True),
        (grpc.StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer", True),
        # Seen in the crash matrix, of a call that began as Triton was killed.
        (grpc.StatusCode.INTERNAL, "Internal error from Core", True),
        (grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'm' is not found", False),
        (grpc.StatusCode.INTERNAL, "Failed to process the request(s) for model 'm'", False),
        (grpc.StatusCode.INTERNAL, "", False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", False),
    ],
)
def test_which_errors_mean_that_no_server_answered(
    code: grpc.StatusCode, details: str, down: bool
) -> None:
    assert is_down(AioRpcError(code, Metadata(), Metadata(), details)) is down
