"""What an API key is: its name, scopes and limits, and the digest that it is known by."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

_ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH = 12
_SECRET_BYTES = 32
_FORMAT = re.compile(rf"vt_([{_ID_ALPHABET}]{{{_ID_LENGTH}}})_[A-Za-z0-9_-]{{43}}")
_RATE = re.compile(r"([1-9]\d{0,8})/(s|min|h)")
_UNITS = {"s": 1, "min": 60, "h": 3600}


class Scope(StrEnum):
    """What a key may do. `admin` includes the others."""

    INFER = "infer"
    JOBS = "jobs"
    ADMIN = "admin"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Rate(_Model):
    """`requests` in `seconds` on average, at most `burst` at once."""

    requests: int = Field(ge=1)
    seconds: int = Field(ge=1)
    burst: int = Field(ge=1)

    @classmethod
    def parse(cls, text: str, burst: int | None = None) -> Self:
        """Return the rate of `10/s`, `600/min` or `1000/h`; the burst is all of it unless given.

        Raises ValueError.
        """
        found = _RATE.fullmatch(text.replace(" ", ""))
        if found is None:
            raise ValueError(f"{text!r} is no rate; give it as 10/s, 600/min or 1000/h")
        requests = int(found[1])
        return cls(requests=requests, seconds=_UNITS[found[2]], burst=burst or requests)

    def __str__(self) -> str:
        unit = next(unit for unit, seconds in _UNITS.items() if seconds == self.seconds)
        return f"{self.requests}/{unit}"


class KeyLimits(_Model):
    """What a key may use; None is no limit but the gateway's own.

    `concurrency` counts calls for an answer that are under way, on all gateways together;
    `queued_jobs` counts jobs that wait; `body_bytes` is of one request's body or medium.
    """

    rate: Rate | None = None
    concurrency: int | None = Field(default=None, ge=1)
    queued_jobs: int | None = Field(default=None, ge=1)
    body_bytes: int | None = Field(default=None, ge=1)


class Key(_Model):
    """A key as it is stored. Times are Unix seconds."""

    id: str
    name: str = Field(min_length=1, max_length=64)
    digest: str = Field(repr=False)
    scopes: tuple[Scope, ...]
    limits: KeyLimits = KeyLimits()
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= time.time()

    @property
    def in_force(self) -> bool:
        return self.revoked_at is None and not self.expired

    def opens(self, presented: str) -> bool:
        """Whether `presented` is this key, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(digest(presented), self.digest)


def make_key(
    name: str,
    scopes: tuple[Scope, ...],
    limits: KeyLimits | None = None,
    expires_at: float | None = None,
) -> tuple[Key, str]:
    """Return a fresh key and what its holder is given, which is kept nowhere."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    presented = f"vt_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    key = Key(
        id=key_id,
        name=name,
        digest=digest(presented),
        scopes=scopes,
        limits=limits or KeyLimits(),
        created_at=time.time(),
        expires_at=expires_at,
    )
    return key, presented


def key_id_of(presented: str) -> str | None:
    """Return the id inside a presented key, or None where it has not the form of one."""
    found = _FORMAT.fullmatch(presented)
    return found[1] if found else None


def digest(presented: str) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(presented.encode()).hexdigest()
