"""A real HTTP server with files, ranges and, on request, the faults that downloads meet."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock


@dataclass
class File:
    """What the server has under a path. Each list holds the faults of the next requests, first come first."""

    content: bytes
    ranges: bool = True
    etag: str | None = "strong"
    length: bool = True
    statuses: list[int] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0

    @property
    def tag(self) -> str | None:
        digest = hashlib.md5(self.content).hexdigest()
        return {"strong": f'"{digest}"', "weak": f'W/"{digest}"', None: None}[self.etag]


@dataclass
class FileServer:
    """`files` by path; `requests` keeps (path, headers) of all that came, header names in small letters."""

    url: str
    files: dict[str, File] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)

    def put(self, path: str, content: bytes, **faults: object) -> File:
        self.files[path] = File(content, **faults)  # type: ignore[arg-type]
        return self.files[path]


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    """Serve on a free port of the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            served.requests.append((self.path, headers))
            self.close_connection = True
            if self.path in served.redirects:
                self.send_response(302)
                self.send_header("Location", served.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            file = served.files.get(self.path)
            status = 404 if file is None else file.statuses.pop(0) if file.statuses else 200
            if file is None or status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                if status == 429:
                    self.send_header("Retry-After", "7")
                self.end_headers()
                return
            self._send(file, headers)

        def _send(self, file: File, headers: dict[str, str]) -> None:
            start, total = 0, len(file.content)
            wanted = headers.get("range")
            if wanted and file.ranges and headers.get("if-range", file.tag) == file.tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if file.length:
                self.send_header("Content-Length", str(total - start))
            if file.tag is not None:
                self.send_header("ETag", file.tag)
            for name, value in file.headers.items():
                self.send_header(name, value)
            self.end_headers()
            body = file.content[start:]
            if file.cut_after:
                body = body[: file.cut_after.pop(0)]
            for offset in range(0, len(body), 4096):
                self.wfile.write(body[offset : offset + 4096])
                time.sleep(file.pause_s)

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # The client had enough.
                super().handle()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = FileServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        # A proxy that the machine may use does not know this server.
        with mock.patch.dict(os.environ, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1"):
            yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
