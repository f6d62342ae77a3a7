"""Reading a request's medium and parameters, whichever way the caller sent them.

    raw body           `image/*`, `video/*`, `application/octet-stream` (told apart by magic bytes)
    multipart          one file part named `file`, `image` or `video`; text parts are parameters
    JSON               `{"url": ...}`, `{"b64": ...}`, or either in `image`, `video` or `input`; a URL may be
                       a data URL

An endpoint may take several: a form's file parts, or a list in JSON's `input`, `image` or `b64`.
Query parameters are merged in; a parameter given twice with different values is refused. A medium
named by a string is taken from the query and from text parts too.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
from starlette.requests import Request

from service.auth.access import Caller
from service.errors import BadInput, InvalidParameter, RequestTimeout, UnsupportedMedia
from service.http.multipart import Form, boundary_of
from service.http.spool import Spool, too_large
from service.media.fetch import Fetcher
from service.media.sniff import Kind
from service.settings import LimitSettings, Settings
from service.tasks.contract import Upload

__all__ = ["Kind", "read_input"]

_SOURCES = ("url", "b64", "image", "video", "input")
_WRITE_BYTES = 1024 * 1024


@asynccontextmanager
async def read_input(
    request: Request, settings: Settings, kinds: Collection[Kind], most: int = 1
) -> AsyncIterator[tuple[Upload | None, dict[str, Any]]]:
    """Yield the upload (None where the endpoint takes none) and the parameters as sent, unchecked.

    With `most` above 1 a request may hold several media; the first one carries the `more`. Together
    they have no more bytes than one body may have.

    Pictures are held in memory; videos lie in a temporary file that is deleted on exit. Raises
    BadInput (`empty_body`, `malformed_json`, `malformed_multipart`, `malformed_base64`, and those
    of `Fetcher.open`), InvalidParameter, PayloadTooLarge, UnsupportedMedia (the medium's kind is
    not in `kinds`), RequestTimeout (the body took longer than limits.request_seconds),
    ClientDisconnect.
    """
    with ExitStack() as spools:
        reader = _Reader(request, settings, kinds, spools, most)
        seconds = settings.limits.request_seconds
        try:
            async with asyncio.timeout(seconds) as deadline:
                received = await reader.read()
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise RequestTimeout(
                f"The body did not arrive within {seconds:g} seconds (limit request_seconds)."
            ) from error
        yield received


class _Reader:
    """Reads one request; every spool it opens is closed by `spools`."""

    def __init__(
        self,
        request: Request,
        settings: Settings,
        kinds: Collection[Kind],
        spools: ExitStack,
        most: int,
    ) -> None:
        self._request = request
        self._limits = _narrowed(settings.limits, request.state.caller)
        self._kinds = kinds
        self._spools = spools
        self._most = most
        self._bytes = 0
        self._fetcher: Fetcher = request.app.state.gateway.fetcher

    async def read(self) -> tuple[Upload | None, dict[str, Any]]:
        content_type = self._request.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        query = self._query()
        # Parameters may all be in the query; so may the medium be named there.
        required = not any(name in query for name in _SOURCES) if self._kinds else not query
        upload: Upload | None = None
        body: dict[str, Any] = {}
        if media_type == "multipart/form-data":
            form = Form(boundary_of(content_type), self._open, self._most)
            await form.read(self._request.stream())
            upload = _joined([await spool.finish() for spool in form.spools])
            body = dict(form.parameters)
        elif media_type == "application/json" or media_type.endswith("+json"):
            body = await self._json(required=required)
        else:
            upload = await self._raw(media_type, required=required)
        parameters = _merge(body, query)
        if self._kinds:
            upload = await self._medium(upload, parameters)
        return upload, parameters

    def _query(self) -> dict[str, Any]:
        query: dict[str, Any] = {}
        for name, value in self._request.query_params.multi_items():
            if query.setdefault(name, value) != value:
                raise _twice(name)
        return query

    async def _json(self, required: bool) -> dict[str, Any]:
        data = bytearray()
        async for chunk in self._request.stream():
            data += chunk
        if not data:
            if required:
                raise BadInput("The body is empty.", code="empty_body")
            return {}
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise BadInput(
                f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
                code="malformed_json",
            ) from error
        if not isinstance(document, dict):
            raise BadInput("The JSON body must be an object.", code="malformed_json")
        return document

    async def _raw(self, media_type: str, required: bool) -> Upload | None:
        headers = self._request.headers
        length = int(headers.get("content-length", "0"))
        if not length and "transfer-encoding" not in headers:
            if required:
                raise BadInput("The body is empty.", code="empty_body")
            return None
        # What the head alone tells to be wrong is refused before any of the body is read.
        spool = self._open(media_type, "upload")
        limit = self._limits.image_body_bytes
        if media_type.startswith("image/") and length > limit:
            raise too_large("The picture", "image_body_bytes", limit)
        async for chunk in self._request.stream():
            await spool.write(chunk)
        return await spool.finish()

    async def _medium(self, upload: Upload | None, parameters: dict[str, Any]) -> Upload:
        """Return the upload, or the medium that a parameter names (and take that parameter out)."""
        given = [name for name in _SOURCES if parameters.get(name) is not None]
        if upload is not None:
            given.insert(0, "the body")
        takes = " or ".join(sorted(self._kinds))
        if not given:
            raise InvalidParameter(
                f"No {takes} is given: send it as the body, as a form's file, or name it in "
                f"{', '.join(_SOURCES)}.",
                code="missing_input",
            )
        if len(given) > 1:
            raise InvalidParameter(
                f"The medium is given more than once: {', '.join(given)}.", param=given[-1]
            )
        if upload is not None:
            return upload
        (name,) = given
        source = parameters.pop(name)
        if not isinstance(source, list) or self._most == 1:
            return await self._named(name, source)
        if not 0 < len(source) <= self._most:
            raise InvalidParameter(
                f"{name} must list 1 to {self._most} media; given were {len(source)}.", param=name
            )
        found = _joined([await self._named(name, each) for each in source])
        assert found is not None
        return found

    async def _named(self, name: str, source: Any) -> Upload:
        if not isinstance(source, str):
            raise InvalidParameter(
                f"{name} must be a string; given was {type(source).__name__}.", param=name
            )
        remote = name == "url" or source.startswith(("http://", "https://"))
        if remote and not _is_data_url(source):
            upload = await self._fetch(source)
        else:
            upload = await self._decode(name, source)
        # What is fetched is in no body, whose limit bounds the rest.
        self._bytes += len(upload.data) if isinstance(upload.data, bytes) else 0
        if self._bytes > self._limits.body_bytes:
            raise too_large("All media together", "body_bytes", self._limits.body_bytes)
        return upload

    async def _fetch(self, url: str) -> Upload:
        async with self._fetcher.open(url) as remote:
            spool = self._open(remote.content_type, remote.name)
            async for chunk in remote.chunks:
                await spool.write(chunk)
            return await spool.finish()

    async def _decode(self, name: str, source: str) -> Upload:
        """Decode base64 or a base64 data URL (RFC 2397)."""
        declared = ""
        if _is_data_url(source):
            header, comma, source = source[5:].partition(",")
            if not comma or not header.lower().endswith(";base64"):
                raise BadInput(
                    f"{name} is a data URL that is not base64.", code="malformed_base64", param=name
                )
            declared = header[: -len(";base64")]
        try:
            data = await asyncio.to_thread(
                binascii.a2b_base64,
                source.encode("ascii").translate(None, b" \r\n\t"),
                strict_mode=True,
            )
        except (binascii.Error, UnicodeEncodeError) as error:
            raise BadInput(
                f"{name} is neither a URL nor base64: {error}.",
                code="malformed_base64",
                param=name,
            ) from error
        spool = self._open(declared, "upload")
        for start in range(0, len(data), _WRITE_BYTES):
            await spool.write(data[start : start + _WRITE_BYTES])
        return await spool.finish()

    def _open(self, content_type: str, name: str) -> Spool:
        if not self._kinds:
            raise UnsupportedMedia("This endpoint takes no media; send JSON.")
        spool = Spool(self._limits, self._kinds, content_type, name)
        self._spools.callback(spool.close)
        return spool


def _is_data_url(source: str) -> bool:
    return source[:5].lower() == "data:"


def _joined(uploads: list[Upload]) -> Upload | None:
    """Return the first of several uploads, with the others in it."""
    if not uploads:
        return None
    return replace(uploads[0], more=tuple(uploads[1:]))


def _narrowed(limits: LimitSettings, caller: Caller) -> LimitSettings:
    """Return the limits of a medium, which are the caller's where those are lower, also when it is
    fetched from a URL."""
    most = caller.limits.body_bytes
    if most is None:
        return limits
    narrower = {
        name: min(most, getattr(limits, name)) for name in ("body_bytes", "image_body_bytes")
    }
    return limits.model_copy(update=narrower)


def _merge(body: dict[str, Any], query: dict[str, Any]) -> dict[str, Any]:
    for name, value in query.items():
        if name in body and str(body[name]) != value:
            raise _twice(name)
    return query | body


def _twice(name: str) -> InvalidParameter:
    return InvalidParameter(f"{name} is given twice with different values.", param=name)
