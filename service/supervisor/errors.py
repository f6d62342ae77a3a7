"""Why a service cannot be started.

StartError
├── DirectoryInUse      another service runs from the data directory
├── DirectoryUnusable   the data directory cannot be written
├── PortTaken           the gateway's port is not free
├── EmbeddedMissing     tritonserver or redis-server is not part of this installation
├── RepositoryFailed    the model repository could not be written
└── PartFailed          a process ended, or was not ready in time
"""

from __future__ import annotations


class StartError(Exception):
    """Base; the message says what is wrong and what to do. `log` holds the lines that matter."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class DirectoryInUse(StartError):
    """Another service runs from the data directory."""


class DirectoryUnusable(StartError):
    """The data directory cannot be created or written."""


class PortTaken(StartError):
    """The address for the gateway cannot be bound."""


class EmbeddedMissing(StartError):
    """This installation has no tritonserver or redis-server of its own."""


class RepositoryFailed(StartError):
    """`python -m models repository` failed."""


class PartFailed(StartError):
    """A process ended while starting, or was not ready in time."""
