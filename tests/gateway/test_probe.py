"""The probe of the containers' health checks, against real HTTP servers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.observability import probe


class _Answers(BaseHTTPRequestHandler):
    """503 twice, then 200; paths below /broken never."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        ready = self.asked > 2 and not self.path.startswith("/broken")
        body = b"" if ready else b"triton is missing"
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    handler = type("Answers", (_Answers,), {"asked": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_it_says_why_not(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main([f"{url}/readyz"]) == 1
    assert capsys.readouterr().err == f"{url}/readyz: status 503: triton is missing\n"


def test_it_waits(url: str) -> None:
    assert probe.main([f"{url}/readyz", "--wait=30"]) == 0


def test_it_gives_up(url: str) -> None:
    assert probe.main([f"{url}/broken", "--wait=0.1"]) == 1


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["http://127.0.0.1:1/livez"]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_it_needs_nothing_but_the_standard_library() -> None:
    source = (
        "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "from service.observability import probe; print(probe.fault('http://127.0.0.1:1/'))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert "Connection refused" in done.stdout, done.stderr
