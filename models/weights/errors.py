"""Everything that can go wrong between a published checkpoint and a served model.

    WeightsError
    ├── DownloadError: NotPublished, AccessRefused, HostUnreachable, TransferFailed, HashMismatch, NoSpace
    ├── CheckpointError: UnsafeCheckpoint, UnreadableCheckpoint
    ├── WrongArchitecture
    ├── WrongLabels
    ├── LicenceNotAccepted
    ├── NameRefused
    └── NoRuntime

Every message is one complete statement for the person at the command line: what is wrong, where, and
the way out.
"""

from __future__ import annotations


class WeightsError(Exception):
    """Base of all of them."""


class DownloadError(WeightsError):
    """A file could not be fetched; what was received so far is kept for the next attempt."""


class NotPublished(DownloadError):
    """The server says that there is no such file (404, 410)."""


class AccessRefused(DownloadError):
    """The server wants a login or an accepted licence (401, 403)."""


class HostUnreachable(DownloadError):
    """No connection to the host: offline, no such name, refused."""


class TransferFailed(DownloadError):
    """The server kept failing or cutting the transfer, or answered something that is no file."""


class HashMismatch(DownloadError):
    """The file is complete, but it is not the one that was published. It is thrown away."""


class NoSpace(DownloadError):
    """The disk has no room for the file."""


class CheckpointError(WeightsError):
    """A checkpoint file could not be read."""


class UnsafeCheckpoint(CheckpointError):
    """The pickle names code that would run while loading."""


class UnreadableCheckpoint(CheckpointError):
    """Damaged, empty, or not a checkpoint at all."""


class WrongArchitecture(WeightsError):
    """The tensors do not fit the network that they were said to belong to."""


class WrongLabels(WeightsError):
    """The labels cannot be read, or their number is not the checkpoint's number of classes."""


class LicenceNotAccepted(WeightsError):
    """The weights may not be used commercially and nobody has agreed to that."""


class NameRefused(WeightsError):
    """The name is taken or cannot be a model's id."""


class NoRuntime(WeightsError):
    """What was asked for cannot run this model on this machine."""
