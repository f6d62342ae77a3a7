"""What people send by mistake or on purpose: a precise refusal with a stable code, and a service that stays well.

Everything goes over HTTP to a running Vitrine. The client gives up after ten seconds, so a hang fails.
"""

from __future__ import annotations

import io
import itertools
import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import httpx2
import numpy as np
import pytest
from PIL import Image

from models.demo import shapes
from models.demo.clips import clip_bytes
from tests.e2e.service import Service
from tests.media.clips import write_clip
from tests.media.test_video import without_samples

pytestmark = pytest.mark.slow

PIXELS, SCENE = shapes.draw(shapes.HELD_OUT + 4, size=128)
LABEL = f"{SCENE.objects[0].colour} {SCENE.objects[0].shape}"


def encoded(kind: str, picture: Image.Image | None = None, **options: object) -> bytes:
    body = io.BytesIO()
    (picture or Image.fromarray(PIXELS)).save(body, kind, **options)
    return body.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header promises width x height grey pixels, nearly all of them zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * min(height, 64)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def silent_video(frames: int) -> bytes:
    """Return an MP4 with an audio stream alone (frames 0) or with `frames` pictures."""
    body = io.BytesIO()
    with av.open(body, "w", format="mp4") as container:
        if frames == 0:
            audio = container.add_stream("aac", rate=16000)
            tone = np.zeros((1, 16000), np.float32)
            sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            sound.sample_rate = 16000
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
        else:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for _ in range(frames):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return body.getvalue()


@pytest.fixture(autouse=True)
def healthy(service: Service) -> Iterator[None]:
    """After each refusal the service must still do its job."""
    yield
    answer = service.client.post(
        "/v1/classify", content=encoded("PNG"), headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["label"] == LABEL


REFUSED: dict[str, tuple[str, bytes, str, int, str]] = {
    "empty body": ("/v1/classify", b"", "image/png", 400, "empty_body"),
    "not an image": ("/v1/classify", b"hello " * 99, "image/png", 415, "unsupported_media"),
    "truncated JPEG": (
        "/v1/classify",
        encoded("JPEG")[:900],
        "image/jpeg",
        400,
        "corrupt_image",
    ),
    "truncated PNG": ("/v1/classify", encoded("PNG")[:700], "image/png", 400, "corrupt_image"),
    "20,000 x 20,000": (
        "/v1/classify",
        png_of_size(20_000, 20_000),
        "image/png",
        413,
        "too_many_pixels",
    ),
    "bomb": (
        "/v1/classify",
        png_of_size(60_000, 60_000),
        "image/png",
        413,
        "too_many_pixels",
    ),
    "truncated MP4": (
        "/v1/deepfake",
        silent_video(30)[:1200],
        "video/mp4",
        400,
        "corrupt_video",
    ),
    "MP4 without pictures": (
        "/v1/deepfake",
        silent_video(0),
        "video/mp4",
        400,
        "no_video_stream",
    ),
    "MP4 with no frames": (
        "/v1/deepfake",
        without_samples(silent_video(3)),
        "video/mp4",
        400,
        "no_frames",
    ),
    "malformed JSON": ("/v1/classify", b'{"url": ', "application/json", 400, "malformed_json"),
    "JSON of a wrong type": (
        "/v1/generate/image",
        b'{"prompt": 7}',
        "application/json",
        422,
        "invalid_parameter",
    ),
    "no prompt": ("/v1/generate/image", b"{}", "application/json", 422, "invalid_parameter"),
    "unknown parameter": (
        "/v1/generate/image",
        b'{"prompt": "a", "colour": 1}',
        "application/json",
        422,
        "invalid_parameter",
    ),
    "unknown model": (
        "/v1/classify?model=nothing",
        encoded("PNG"),
        "image/png",
        404,
        "model_not_found",
    ),
    "model of another task": (
        "/v1/classify?model=genconvit-demo",
        encoded("PNG"),
        "image/png",
        404,
        "model_of_another_task",
    ),
    "URL to loopback": (
        "/v1/classify",
        b'{"url": "http://127.0.0.1:9/x.png"}',
        "application/json",
        400,
        "url_not_allowed",
    ),
    "URL to a private address": (
        "/v1/classify",
        b'{"url": "http://10.0.0.1/x.png"}',
        "application/json",
        400,
        "url_not_allowed",
    ),
    "URL to a mapped address": (
        "/v1/classify",
        b'{"url": "http://[::ffff:127.0.0.1]/x.png"}',
        "application/json",
        400,
        "url_not_allowed",
    ),
    "URL of another scheme": (
        "/v1/classify",
        b'{"url": "file:///etc/passwd"}',
        "application/json",
        400,
        "url_not_allowed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(service: Service, case: str) -> None:
    path, body, kind, status, code = REFUSED[case]
    answer = service.client.post(path, content=body, headers={"Content-Type": kind})
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"steps": 0}, "100"),
        ({"steps": 101}, "100"),
        ({"guidance": 99}, "20"),
        ({"n": 9}, "8"),
        ({"width": 65}, "64"),
        ({"seed": -1}, "0"),
    ],
)
def test_a_parameter_out_of_range_names_the_range(
    service: Service, parameters: dict[str, int], named: str
) -> None:
    answer = service.client.post(
        "/v1/generate/image", json={"prompt": "a red circle", **parameters}
    )
    body = answer.json()
    assert (answer.status_code, body["code"]) == (422, "invalid_parameter")
    assert body["param"] == next(iter(parameters))
    assert named in body["detail"]


def rotated() -> bytes:
    picture = Image.fromarray(PIXELS).rotate(90, expand=True)
    exif = picture.getexif()
    exif[0x0112] = 6
    return encoded("JPEG", picture, exif=exif, quality=95)


def animated() -> bytes:
    first = Image.fromarray(PIXELS)
    return encoded("WEBP", first, save_all=True, append_images=[Image.new("RGB", first.size)])


HANDLED: dict[str, Callable[[], bytes]] = {
    "CMYK JPEG": lambda: encoded("JPEG", Image.fromarray(PIXELS).convert("CMYK"), quality=95),
    "palette PNG": lambda: encoded("PNG", Image.fromarray(PIXELS).quantize(64)),
    "palette GIF": lambda: encoded("GIF", Image.fromarray(PIXELS).quantize(128)),
    "alpha PNG": lambda: encoded("PNG", Image.fromarray(PIXELS).convert("RGBA")),
    "animated WebP": animated,
    "EXIF-rotated JPEG": rotated,
    "TIFF": lambda: encoded("TIFF"),
    "BMP": lambda: encoded("BMP"),
}


@pytest.mark.parametrize("case", HANDLED)
def test_unusual_pictures_are_read(service: Service, case: str) -> None:
    answer = service.post("/v1/classify", HANDLED[case](), "application/octet-stream")
    assert answer["predictions"][0]["label"] == LABEL


@pytest.mark.parametrize("mode", ["L", "I;16", "1"])
def test_grey_and_sixteen_bit_pictures_are_read(service: Service, mode: str) -> None:
    grey = Image.fromarray(PIXELS).convert("L")
    if mode == "I;16":
        grey = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    answer = service.post("/v1/classify", encoded("PNG", grey.convert(mode)), "image/png")
    assert len(answer["predictions"]) == 5


def test_one_pixel(service: Service) -> None:
    answer = service.post("/v1/classify", encoded("PNG", Image.new("RGB", (1, 1))), "image/png")
    assert answer["image"] == {"width": 1, "height": 1}


def test_a_body_over_the_limit_is_refused_before_it_is_read(service: Service) -> None:
    """Only the head is sent: whoever waits for the body would hang."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        answer = b""
        while b"}" not in answer and (part := connection.recv(65536)):
            answer += part
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b'"payload_too_large"' in answer


def test_a_chunked_body_is_counted(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield bytes(1024 * 1024)

    try:
        answer = service.client.post(
            "/v1/classify", content=endless(), headers={"Content-Type": "image/png"}
        )
    except httpx2.TransportError:
        return  # the connection was closed while the body was still coming: also a refusal
    assert answer.status_code == 413


def test_a_client_that_leaves(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    body = encoded("PNG")
    for cut in (10, len(body)):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)
            )
            connection.sendall(body[:cut])


@contextmanager
def web_server() -> Iterator[str]:
    """Serve redirects on the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/secret.png")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_name_that_leads_to_loopback(service: Service) -> None:
    with web_server() as url:
        port = url.rsplit(":", 1)[1]
        for host in ("localhost", "127.1", "0.0.0.0", "2130706433"):
            answer = service.client.post(
                "/v1/classify", json={"url": f"http://{host}:{port}/a.png"}
            )
            assert answer.status_code == 400, (host, answer.text)
            assert answer.json()["code"] in ("url_not_allowed", "url_unreachable"), answer.text


def test_a_variable_frame_rate_is_handled(service: Service) -> None:
    body = io.BytesIO()
    source = av.open(io.BytesIO(clip_bytes(shapes.HELD_OUT + 7, manipulated=False)))
    with source, av.open(body, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 600)
        clock = 0
        for index, frame in enumerate(source.decode(video=0)):
            frame.pts, frame.time_base = clock, Fraction(1, 600)
            clock += 40 * (1 + index % 3)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    answer = service.post("/v1/deepfake", body.getvalue(), "video/mp4")
    times = [moment["t"] for moment in answer["timeline"]]
    gaps = {round(b - a, 3) for a, b in itertools.pairwise(times)}
    assert len(gaps) > 1
    assert answer["faces"]


def test_a_rotated_video_is_judged_upright(service: Service, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=3, size=(128, 96), rotation=90)
    answer = service.post("/v1/deepfake", clip.read_bytes(), "video/mp4")
    assert (answer["sampling"]["width"], answer["sampling"]["height"]) == (96, 128)


def test_unknown_paths_and_methods(service: Service) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/classify", 405),
        ("GET", "/v1/jobs/nothing", 404),
        ("DELETE", "/v1/jobs/nothing", 404),
        ("GET", "/v1/jobs/nothing/events", 404),
        ("GET", "/v1/models/nothing", 404),
    ):
        answer = service.client.request(method, path)
        assert answer.status_code == status, (method, path)
        assert json.loads(answer.text)["code"]
