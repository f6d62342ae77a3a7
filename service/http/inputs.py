"""Reading a request's medium and parameters, whichever way the caller sent them.

    raw body           `image/*`, `video/*`, `application/octet-stream` (told apart by magic bytes)
    multipart          one file part named `file`, `image` or `video`; text parts are parameters
    JSON               `{"url": ...}`, `{"b64": ...}`, or a data URL or URL in `image`, `video` or `input`

Query parameters are merged in; a parameter given twice with different values is refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any, Literal

from starlette.requests import Request

from service.settings import Settings
from service.tasks.contract import Upload

Kind = Literal["image", "video"]


@asynccontextmanager
async def read_input(
    request: Request, settings: Settings, kinds: Collection[Kind]
) -> AsyncIterator[tuple[Upload | None, dict[str, Any]]]:
    """Yield the upload (None where the caller sent none) and the parameters as sent, unchecked.

    Pictures are held in memory; videos lie in a temporary file that is deleted on exit. Raises
    BadInput (`empty_body`, `malformed_json`, `malformed_multipart`), InvalidParameter,
    PayloadTooLarge, UnsupportedMedia (the medium's kind is not in `kinds`).
    """
    raise NotImplementedError
    yield None, {}
