"""The few calls of S3's REST interface that the storage makes, over a dictionary, on a free port.

No S3 server can be installed with pip; this one checks that URL, endpoint, prefix and credentials
reach the wire as S3 wants them.
"""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


class S3Server(ThreadingHTTPServer):
    """`objects`: by `/bucket/key`, content type and bytes. `refusal`: a status to answer everything with.

    `uploads`: the content type and the parts of objects that come in parts, by upload id.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[str, bytes]] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.refusal: tuple[int, str] | None = None
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Server

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if not self._accepted():
            return
        query = self._query
        if "partNumber" in query:
            self.server.uploads[query["uploadId"]][1][int(query["partNumber"])] = body
        else:
            self.server.objects[self._key] = (self.headers["content-type"], body)
        self._answer(200, b"", {"ETag": '"1"'})

    def do_DELETE(self) -> None:
        """AbortMultipartUpload, the one DELETE that is made."""
        if self._accepted():
            del self.server.uploads[self._query["uploadId"]]
            self._answer(204, b"")

    def do_GET(self) -> None:
        if not self._accepted():
            return
        if "list-type" in self._query:
            self._list(self._query["prefix"])
            return
        content_type, body = self.server.objects.get(self._key, ("", b""))
        if self._key not in self.server.objects:
            self._error(404, "NoSuchKey")
            return
        headers = {"ETag": '"1"', "Last-Modified": "Mon, 23 Nov 2026 12:00:00 GMT"}
        headers["Content-Type"] = content_type
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if wanted is None:
            self._answer(200, body, headers)
            return
        start, end = int(wanted[1]), int(wanted[2] or len(body) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
        self._answer(206, body[start : end + 1], headers)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """DeleteObjects, CreateMultipartUpload and CompleteMultipartUpload."""
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        if not self._accepted():
            return
        if "uploads" in self._query:
            name = str(len(self.server.uploads))
            self.server.uploads[name] = (self.headers["content-type"], {})
            self._answer(
                200, f"<R><Key>k</Key><Bucket>b</Bucket><UploadId>{name}</UploadId></R>".encode()
            )
        elif "uploadId" in self._query:
            content_type, parts = self.server.uploads.pop(self._query["uploadId"])
            whole = b"".join(part for _, part in sorted(parts.items()))
            self.server.objects[self._key] = (content_type, whole)
            self._answer(200, b"<R><ETag>1</ETag></R>")
        else:
            bucket = self._key.rstrip("/") + "/"
            keys = re.findall("<Key>(.*?)</Key>", body)
            for key in keys:
                self.server.objects.pop(bucket + unescape(key), None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def _list(self, prefix: str) -> None:
        bucket = self._key.rstrip("/") + "/"
        contents = "".join(
            f"<Contents><Key>{escape(key.removeprefix(bucket))}</Key><Size>{len(body)}</Size>"
            "<LastModified>2026-11-23T12:00:00.000Z</LastModified><ETag>1</ETag></Contents>"
            for key, (_, body) in sorted(self.server.objects.items())
            if key.startswith(bucket + prefix)
        )
        document = (
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )
        self._answer(200, document.encode())

    @property
    def _query(self) -> dict[str, str]:
        found = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in found.items()}

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _accepted(self) -> bool:
        if self.server.refusal is not None:
            self._error(*self.server.refusal)
            return False
        if "Credential=an-id/" not in self.headers.get("authorization", ""):
            self._error(403, "AccessDenied")
            return False
        return True

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""
