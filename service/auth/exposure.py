"""Whether callers need a key, and whether a gateway may start that way."""

from __future__ import annotations

from ipaddress import ip_address

from service.auth.store import KeyStore
from service.jobs.connection import Connection
from service.settings import Settings

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Exposed(Exception):
    """The gateway would ask for keys, and there is none; the message says what to do."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def key_required(settings: Settings) -> bool:
    """Whether callers must present a key: by the setting, else on any bind but loopback."""
    required = settings.auth.required
    return not is_loopback(settings.host) if required is None else required


def may_lack_keys(settings: Settings) -> bool:
    """Whether there has to be a key in Redis, so that somebody may call at all."""
    return key_required(settings) and settings.auth.admin_key is None


async def refuse_exposure(settings: Settings) -> None:
    """Raise Exposed where keys are required and none is in force. Raises RedisUnavailable."""
    if not may_lack_keys(settings):
        return
    async with Connection(settings.redis, settings.jobs) as connection:
        keys = await KeyStore(connection, settings.redis.connect_timeout_s).list()
    if any(key.in_force for key in keys):
        return
    reason = (
        f"{settings.host or 'every address'} is reached from other machines, so callers need an API key"
        if settings.auth.required is None
        else "API keys are required (VITRINE_AUTH__REQUIRED)"
    )
    raise Exposed(
        f"{reason}, and there is none. Make one with `vitrine keys create NAME`, let everybody in "
        "with --no-auth (VITRINE_AUTH__REQUIRED=false), or listen on 127.0.0.1."
    )
