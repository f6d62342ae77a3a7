"""multipart/form-data (RFC 7578), read as a stream: one file part or several, the others are parameters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadInput, PayloadTooLarge
from service.http.spool import Spool

FILE_PARTS = ("file", "image", "video")
_TEXT_BYTES = 1024 * 1024
_TEXT_PARTS = 64

OpenSpool = Callable[[str, str], Spool]
"""Makes the spool for a file part from its media type and its file name."""


@dataclass(slots=True)
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    name: str = ""
    text: bytearray = field(default_factory=bytearray)
    spool: Spool | None = None


class Form:
    """The parts of one body: `parameters` by name, and the spools of its files, at most `most`."""

    def __init__(self, boundary: bytes, open_spool: OpenSpool, most: int = 1) -> None:
        self.parameters: dict[str, str] = {}
        self.spools: list[Spool] = []
        self._most = most
        self._open_spool = open_spool
        self._part = _Part()
        self._text_bytes = 0
        self._pending: list[tuple[Spool, bytes]] = []
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._finish,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from error

    async def read(self, chunks: AsyncIterator[bytes]) -> None:
        """Read the whole body. Raises BadInput, PayloadTooLarge, UnsupportedMedia."""
        empty = True
        async for chunk in chunks:
            if not chunk:
                continue
            empty = False
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise _malformed(str(error)) from error
            pending, self._pending = self._pending, []
            for spool, data in pending:
                await spool.write(data)
        if empty:
            raise BadInput("The body is empty.", code="empty_body")
        if not self._ended:
            raise _malformed("the body ends before its last boundary")

    def _begin(self) -> None:
        self._part = _Part()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.value += data[start:end]

    def _header_end(self) -> None:
        part = self._part
        part.headers[bytes(part.header).lower()] = bytes(part.value)
        part.header.clear()
        part.value.clear()

    def _headers_finished(self) -> None:
        part = self._part
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise _malformed("a part has no name")
        part.name = options[b"name"].decode("utf-8", "replace")
        if b"filename" not in options and part.name not in FILE_PARTS:
            return
        if part.name not in FILE_PARTS:
            raise BadInput(
                f"The file part is named {part.name!r}; name it one of {', '.join(FILE_PARTS)}.",
                code="malformed_multipart",
                param=part.name,
            )
        if b"filename" not in options and b"content-type" not in part.headers:
            return  # a text part may carry a URL or a data URL under a medium's name
        if len(self.spools) >= self._most:
            holds = "one file" if self._most == 1 else f"{self._most} files"
            raise BadInput(f"The form holds more than {holds}.", code="malformed_multipart")
        content_type = part.headers.get(b"content-type", b"").decode("latin-1")
        file_name = options.get(b"filename", b"upload").decode("utf-8", "replace")
        part.spool = self._open_spool(content_type, file_name)
        self.spools.append(part.spool)

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.spool is not None:
            self._pending.append((part.spool, data[start:end]))
            return
        self._text_bytes += end - start
        if self._text_bytes > _TEXT_BYTES:
            raise PayloadTooLarge(
                f"The form's text parts are larger than {_TEXT_BYTES:,} bytes together."
            )
        part.text += data[start:end]

    def _end(self) -> None:
        part = self._part
        if part.spool is not None:
            return
        if part.name in self.parameters:
            raise BadInput(
                f"The part {part.name!r} is given twice.",
                code="malformed_multipart",
                param=part.name,
            )
        if len(self.parameters) >= _TEXT_PARTS:
            raise PayloadTooLarge(f"The form has more than {_TEXT_PARTS} text parts.")
        try:
            self.parameters[part.name] = part.text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _malformed(f"the part {part.name!r} is not UTF-8 text") from error

    def _finish(self) -> None:
        self._ended = True


def _malformed(reason: str) -> BadInput:
    return BadInput(f"The multipart body cannot be read: {reason}.", code="malformed_multipart")


def boundary_of(content_type: str) -> bytes:
    """Return the boundary named by the Content-Type. Raises BadInput."""
    _, options = parse_options_header(content_type)
    boundary: Any = options.get(b"boundary")
    if not boundary:
        raise _malformed("its Content-Type names no boundary")
    return bytes(boundary)
