"""What can go wrong on the client's side.

ClientError
├── ServiceNotRunning   nobody answers at the URL, or the connection broke
└── ApiError            the service refused or failed; carries its stable code
"""

from __future__ import annotations

from typing import Self

import httpx2


class ClientError(Exception):
    """Base of the client's errors."""


class ServiceNotRunning(ClientError):
    """No service answers at the URL."""


class ApiError(ClientError):
    """The service's answer was an error (RFC 9457)."""

    def __init__(self, status: int, code: str, message: str, request_id: str | None) -> None:
        super().__init__(f"{message} [{code}]")
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id

    @classmethod
    def of(cls, response: httpx2.Response) -> Self:
        """Return the error in a response that has been read."""
        try:
            problem = response.json()
            code, message = str(problem["code"]), str(problem["detail"])
        except (ValueError, KeyError, TypeError):
            code = f"http_{response.status_code}"
            message = f"{response.request.url} answered {response.status_code} without a reason."
        return cls(response.status_code, code, message, response.headers.get("x-request-id"))
