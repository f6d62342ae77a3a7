"""Requests as no well-behaved client sends them, over a plain socket: the answer and nothing lost.

    python -m tests.fuzz.requests --requests 500 --seed 1

Every request must be answered in time, with a status below 500, by a problem with a code where it
is an error, or by a closed connection where it is no HTTP; and the gateway must work afterwards.
"""

from __future__ import annotations

import argparse
import base64
import json
import select
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import httpx2

from tests.fuzz.mutations import damage
from tests.fuzz.seeds import seeds
from tests.fuzz.system import KEY, system

SECONDS = 20.0
"""Above the gateway's own limit on a request, which must come first."""

_PATIENCE_S = 0.3

_PATHS = ("/v1/classify", "/v1/deepfake", "/v1/embed", "/v1/generate/image")
_BOUNDARY = b"-----------------------------7MA4YWxk"


@dataclass(slots=True)
class Run:
    """How often which answer came; `failures` say what was wrong with which request."""

    answers: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


def run(url: str, seed: int, count: int) -> Run:
    """Send `count` requests to the gateway, one after the other."""
    found, files = Run(), seeds()
    address = urlsplit(url)
    for number in range(count):
        random = Random(f"{seed}/{number}")
        kind, make = random.choice(_KINDS)
        request = make(random, files)
        started = time.monotonic()
        answer = _exchange(address.hostname or "", address.port or 0, request)
        took = time.monotonic() - started
        found.slowest_s = max(found.slowest_s, took)
        wrong = _wrong(answer)
        found.answers[answer[9:12].decode("latin-1") if answer else "closed"] += 1
        if wrong or took > SECONDS:
            found.failures.append(f"request {number} ({kind}): {wrong or 'no answer in time'}")
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for path in ("/livez", "/readyz", "/v1/models"):
            if not (healthy := client.get(path)).is_success:
                found.failures.append(f"afterwards {path} answers {healthy.status_code}")
        if client.post("/v1/classify", content=files["jpeg"]).status_code != 200:
            found.failures.append("afterwards a picture is not classified")
    return found


def _exchange(host: str, port: int, request: bytes) -> bytes:
    """Send the bytes and return all that comes back. Where nothing does, as to a body that is shorter
    than it says, the sending side is closed, which a gateway takes for a client that has gone."""
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        received = bytearray()
        try:
            connection.sendall(request)
            if not select.select([connection], [], [], _PATIENCE_S)[0]:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except TimeoutError:
            return b"HTTP/1.1 000 no answer in time"
        except ConnectionError:  # refused before all of it was read
            pass
        return bytes(received)


def _wrong(answer: bytes) -> str:
    """Return what is wrong with an answer; nothing if it is one that a bad request may get."""
    if not answer:
        return ""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[9:12]
    if not b"100" <= status < b"500" or not head.startswith(b"HTTP/1.1 "):
        return answer[:300].decode("latin-1")
    if b"application/problem+json" in head and b'"code":"' not in body:
        return "a problem without a code"
    return ""


def _head(random: Random, content_type: str, length: int | None, path: str = "") -> bytes:
    lines = [
        f"POST {path or random.choice(_PATHS)} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        f"Authorization: Bearer {KEY}",
    ]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def _file(random: Random, files: dict[str, bytes]) -> bytes:
    return damage(random, random.choice(list(files)), files)[1]


def _raw(random: Random, files: dict[str, bytes]) -> bytes:
    """A damaged file under some media type, at times with a length that is not its own."""
    body = _file(random, files)
    kinds = ("image/jpeg", "image/png", "video/mp4", "application/octet-stream", "text/html", "")
    length = len(body) + random.choice((0, 0, 0, 0, -1, 1, 1000))
    return _head(random, random.choice(kinds), max(0, length)) + body


def _multipart(random: Random, files: dict[str, bytes]) -> bytes:
    """A form whose boundaries, headers or parts are broken."""
    name = random.choice((b"file", b"image", b"f" * 5000, b"", b'"', b"\xff\xfe", b"a\r\nb: c"))
    headers = b'Content-Disposition: form-data; name="' + name + b'"'
    headers += random.choice((b"", b'; filename="../../etc/passwd"', b"; filename*=utf-8''%ff"))
    extra = random.choice((b"", b"X: " + b"y" * 20_000, b"X:1\r\n" * 3000, b":", b"\0: \0"))
    nested = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n--x--"
    parts = []
    for _ in range(random.choice((1, 1, 2, 100))):
        content = random.choice((_file(random, files), b"", b"5", nested, b"--" + _BOUNDARY))
        parts.append(
            b"--" + _BOUNDARY + b"\r\n" + headers + b"\r\n" + extra + b"\r\n\r\n" + content
        )
    end = random.choice((b"--" + _BOUNDARY + b"--\r\n", b"", b"--" + _BOUNDARY, b"--" * 500))
    body = b"\r\n".join((*parts, end))
    if random.random() < 0.5:
        body = _scrambled(random, body)
    boundary = random.choice((_BOUNDARY.decode(), _BOUNDARY.decode(), "", "x" * 300, '"', "é"))
    return _head(random, f"multipart/form-data; boundary={boundary}", len(body)) + body


def _json(random: Random, files: dict[str, bytes]) -> bytes:
    """JSON that is broken, deep, large, or right but for its values."""
    data = base64.b64encode(_file(random, files)).decode()
    values = (data, f"data:image/png;base64,{data}", data[:-1], "data:,x", "", None, 5, [], {}, -1)
    url = random.choice(("http://127.0.0.1/", "file:///etc/passwd", "http://[::1", "x:" * 999))
    names = ("b64", "image", "video", "input", "top_k", "frames", "model", "prompt", "seed", "mode")
    document = {name: random.choice(values) for name in random.sample(names, random.randrange(5))}
    if random.random() < 0.2:
        document["url"] = url
    if random.random() < 0.2:
        document["seed"] = random.choice((2**63, 2**70, -1, 1e400, 0.5, True))
    body = random.choice(
        (
            json.dumps(document).encode(),
            json.dumps(document).encode(),
            _scrambled(random, json.dumps(document).encode()),
            b"[" * 50_000,
            b'{"a":' * 50_000,
            b'{"top_k": NaN}',
            b'{"prompt": "\xff\xfe"}',
            b'{"prompt": "\\ud800"}',
            json.dumps({"prompt": "\0" * 50}).encode(),
        )
    )
    return _head(random, "application/json", len(body)) + body


def _chunked(random: Random, files: dict[str, bytes]) -> bytes:
    """A chunked body whose sizes may lie."""
    head = _head(random, "image/jpeg", None)[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
    body = _file(random, files)[:5000]
    sizes = (b"%x" % len(body), b"ffffffffffffffff", b"-1", b"zz", b"%x" % (len(body) + 5))
    ending = random.choice((b"\r\n0\r\n\r\n", b"\r\n", b""))
    return head + random.choice((sizes[0], *sizes)) + b"\r\n" + body + ending


def _line(random: Random, files: dict[str, bytes]) -> bytes:
    """Request lines, paths and headers that are long, odd or no HTTP."""
    paths = ("/v1/jobs/" + "x" * 5000, "/v1/jobs/%00", "/v1/models/%ff%fe", "/web/../../etc/passwd")
    whole = (
        random.randbytes(200),
        _scrambled(random, _head(random, "image/png", 3) + b"abc"),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
        _head(random, "", 0, "/v1/jobs?after=%ff&limit=" + "9" * 400).replace(b"POST", b"GET"),
        _head(random, "image/png; charset=\xff", 0),
        _head(random, "", 0, random.choice(paths)),
        _head(random, "", None, random.choice(paths)).replace(b"POST", b"GET"),
    )
    return random.choice(whole)


def _scrambled(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 3, 20))):
        place = random.randrange(len(changed) + 1)
        changed[place : place + random.choice((0, 1, 5))] = random.randbytes(random.randrange(4))
    return bytes(changed)


_KINDS: tuple[tuple[str, Callable[[Random, dict[str, bytes]], bytes]], ...] = (
    ("raw", _raw),
    ("multipart", _multipart),
    ("json", _json),
    ("chunked", _chunked),
    ("line", _line),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.requests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is sent (default 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, system(Path(folder)) as url:
        found = run(url, options.seed, options.requests)
    answers = ", ".join(f"{status}: {count}" for status, count in sorted(found.answers.items()))
    print(f"{options.requests} requests, answers {answers}; slowest {found.slowest_s:.2f} s")
    print("\n".join(found.failures) or "nothing failed")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
