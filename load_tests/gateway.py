"""What the gateway costs: `/v1/classify` through it, against the same model called on Triton directly.

    python -m load_tests.gateway [--seconds 10] [--rounds 3] [--video]

Both run in one system and by turns, at concurrency 1, 8 and 32: 100 kB JPEG bodies by HTTP, and
by gRPC the pixels that they decode to. The client shares the machine, so read the ratios. The
model is ConvNeXt-T at 224 with random weights (it takes far more than 10 ms on a CPU) beside the
small demo model, which shows the gateway's own ceiling. Results go to load_tests/results/gateway.{json,md}.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import av
import grpc
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2_grpc as stubs

from load_tests.system import System, machine, running
from models.demo.clips import frames
from service.triton import tensors

RESULTS = Path(__file__).parent / "results"
CONCURRENCIES = (1, 8, 32)
REALISTIC = "convnext-tiny-random"
SMALL = "convnext-demo"
CLIP_SECONDS = (10, 60, 180)
CLIP_RUNS = 3
SIZES = {REALISTIC: 224, SMALL: 64}


def photograph(size: int = 100_000) -> bytes:
    """Return a JPEG of about `size` bytes with the statistics of a photograph: smooth shapes and grain."""
    stream = np.random.default_rng(7)
    coarse = Image.fromarray(stream.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.int16)
    pixels = np.clip(pixels + stream.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
    best = b""
    for quality in range(30, 100, 2):
        body = io.BytesIO()
        Image.fromarray(pixels).save(body, "JPEG", quality=quality)
        best = body.getvalue()
        if len(best) >= size:
            break
    return best


def through_gateway(system: System, model: str) -> Callable[[], Callable[[], None]]:
    """Return a maker of clients (one a thread, keep-alive) that post one photograph a call."""
    host = urlsplit(system.url).netloc
    body = photograph()
    headers = {"Content-Type": "image/jpeg", "Content-Length": str(len(body))}

    def client() -> Callable[[], None]:
        connection = http.client.HTTPConnection(host, timeout=120)

        def call() -> None:
            connection.request("POST", f"/v1/classify?model={model}", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {content[:300]!r}")

        return call

    return client


def direct(system: System, model: str) -> Callable[[], Callable[[], None]]:
    """Return a maker of clients that send the decoded pixels to Triton by gRPC."""
    size = SIZES[model]
    picture = Image.open(io.BytesIO(photograph())).resize((size, size))
    pixels = np.asarray(picture).transpose(2, 0, 1)[None]
    message = tensors.request(model, {"IMAGE": np.ascontiguousarray(pixels)})

    def client() -> Callable[[], None]:
        stub = stubs.GRPCInferenceServiceStub(grpc.insecure_channel(system.triton))

        def call() -> None:
            tensors.outputs(stub.ModelInfer(message, timeout=120))

        return call

    return client


def measure(
    system: System, client: Callable[[], Callable[[], None]], concurrency: int, seconds: float
) -> dict[str, float]:
    """Run `concurrency` closed-loop clients for `seconds` after a warm-up and return what they saw."""
    calls = [client() for _ in range(concurrency)]
    latencies: list[float] = []
    failures: list[BaseException] = []
    lock = threading.Lock()

    def loop(call: Callable[[], None], until: float, keep: bool) -> None:
        mine = []
        try:
            while time.perf_counter() < until:
                started = time.perf_counter()
                call()
                mine.append(time.perf_counter() - started)
        except BaseException as failure:
            failures.append(failure)
        if keep:
            with lock:
                latencies.extend(mine)

    def run(duration: float, keep: bool) -> float:
        started = time.perf_counter()
        threads = [
            threading.Thread(target=loop, args=(call, started + duration, keep)) for call in calls
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    calls[0]()  # the first use may load the model
    run(min(2.0, seconds / 3), keep=False)
    before = {part: system.cpu_seconds(part) for part in ("gateway", "triton")}
    elapsed = run(seconds, keep=True)
    if failures:
        raise failures[0]
    used = {part: system.cpu_seconds(part) - before[part] for part in before}
    times = np.array(sorted(latencies)) * 1000
    return {
        "requests": len(times),
        "per_second": len(times) / elapsed,
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
        "p99_ms": float(np.percentile(times, 99)),
        "gateway_cpu_ms": 1000 * used["gateway"] / len(times),
        "triton_cpu_ms": 1000 * used["triton"] / len(times),
    }


def classify(system: System, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Measure both ways by turns and return one row for each model, concurrency and way (medians over rounds)."""
    rows: list[dict[str, Any]] = []
    for model in (REALISTIC, SMALL):
        ways = {"gateway": through_gateway(system, model), "direct": direct(system, model)}
        for concurrency in CONCURRENCIES:
            seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, client in ways.items():
                    seen[way].append(measure(system, client, concurrency, seconds))
            for way, runs in seen.items():
                row = {key: median(run[key] for run in runs) for key in runs[0]}
                rows.append({"model": model, "concurrency": concurrency, "way": way, **row})
                print(_line(rows[-1]), flush=True)
    return rows


def write_clip(path: Path, seconds: int) -> None:
    """Write a grainy 1080p clip of a drawn face, 30 frames/s, H.264 at 2.5 Mbit/s: two seconds, repeated."""
    grain = np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "x264-params": "keyint=60:open-gop=0"}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.bit_rate = 2_500_000
        packets: list[av.Packet] = []
        for pixels in frames(seed=11, manipulated=True, count=60, fps=30, size=540):
            picture = np.full((1080, 1920, 3), (96, 110, 120), np.int16)
            picture[:, 420:1500] = np.asarray(Image.fromarray(pixels).resize((1080, 1080)))
            picture += grain.normal(0, 3, picture.shape).astype(np.int16)
            shown = np.clip(picture, 0, 255).astype(np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(shown))
        packets += stream.encode(None)
        base = packets[0].time_base
        times = [(packet.pts, packet.dts) for packet in packets]
        for k in range(seconds // 2):
            for packet, (pts, dts) in zip(packets, times, strict=True):
                # The container converts the time stamps of what it takes.
                shift, packet.time_base = int(2 * k / base), base
                packet.pts, packet.dts = pts + shift, dts + shift
                container.mux(packet)


def video(system: System) -> list[dict[str, Any]]:
    """Score 1080p clips of several lengths and return times, frame rates and the gateway's peak memory.

    The first clip is scored twice before, so that no row pays for the first use of anything.
    """
    rows = []
    host = urlsplit(system.url).netloc
    with tempfile.TemporaryDirectory() as directory:
        for length in CLIP_SECONDS:
            clip = Path(directory) / f"{length}.mp4"
            write_clip(clip, length)
            body = clip.read_bytes()
            for attempt in range(-2 if length == CLIP_SECONDS[0] else 0, CLIP_RUNS):
                system.reset_peak_memory("gateway")
                started = time.perf_counter()
                connection = http.client.HTTPConnection(host, timeout=600)
                connection.request("POST", "/v1/deepfake", body, {"Content-Type": "video/mp4"})
                answer = connection.getresponse()
                content = json.loads(answer.read())
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {content}")
                elapsed = time.perf_counter() - started
                if attempt < 0:
                    continue
                sampled = content["sampling"]["frames_decoded"]
                rows.append(
                    {
                        "clip_seconds": length,
                        "run": attempt + 1,
                        "body_mb": len(body) / 1e6,
                        "seconds": elapsed,
                        "sampled_frames": sampled,
                        "sampled_frames_per_second": sampled / elapsed,
                        "clip_frames_per_second": length * 30 / elapsed,
                        "gateway_peak_mib": system.peak_memory("gateway") / 2**20,
                    }
                )
                print(rows[-1], flush=True)
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the figures that the aims speak of."""

    def row(model: str, concurrency: int, way: str) -> dict[str, Any]:
        return next(
            r for r in rows if (r["model"], r["concurrency"], r["way"]) == (model, concurrency, way)
        )

    found = {}
    for model in (REALISTIC, SMALL):
        for c in CONCURRENCIES:
            share = row(model, c, "gateway")["per_second"] / row(model, c, "direct")["per_second"]
            found[f"{model}: gateway / direct throughput at {c}"] = share
        added = row(model, 1, "gateway")["p50_ms"] - row(model, 1, "direct")["p50_ms"]
        found[f"{model}: added p50 ms at 1"] = added
        for way in ("gateway", "direct"):
            gain = row(model, 32, way)["per_second"] / row(model, 1, way)["per_second"]
            found[f"{model}: {way} throughput at 32 / at 1"] = gain
    return found


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:22} {row['concurrency']:3} {row['way']:8} {row['per_second']:8.1f}/s "
        f"p50 {row['p50_ms']:7.1f}  p95 {row['p95_ms']:7.1f}  p99 {row['p99_ms']:7.1f} ms  "
        f"cpu gateway {row['gateway_cpu_ms']:6.2f}  triton {row['triton_cpu_ms']:6.2f} ms"
    )


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    on = report["machine"]
    lines = [
        "# Gateway",
        "",
        f"`python -m load_tests.gateway` on {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB; "
        "client, gateway and Triton share the cores. Medians over the rounds.",
        "",
        "| model | concurrency | way | requests/s | p50 ms | p95 ms | p99 ms | gateway CPU ms | Triton CPU ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']} | {r['concurrency']} | {r['way']} | {r['per_second']:.1f} | {r['p50_ms']:.1f} | {r['p95_ms']:.1f} "
        f"| {r['p99_ms']:.1f} | {r['gateway_cpu_ms']:.2f} | {r['triton_cpu_ms']:.2f} |"
        for r in report["classify"]
    ]
    lines += ["", "| ratio | value |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in report["ratios"].items()]
    if report.get("video"):
        lines += [
            "",
            "| 1080p clip | MB | run | seconds | sampled frames/s | clip frames/s | gateway peak MiB |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['clip_seconds']} s | {r['body_mb']:.1f} | {r['run']} | {r['seconds']:.1f} | {r['sampled_frames_per_second']:.1f} "
            f"| {r['clip_frames_per_second']:.0f} | {r['gateway_peak_mib']:.0f} |"
            for r in report["video"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind, by turns")
    parser.add_argument("--video", action="store_true", help="score 1080p clips too")
    options = parser.parse_args()
    # More clients than the model can keep up with are the point here, and would be refused.
    os.environ["VITRINE_SHEDDING__ENABLED"] = "false"
    report: dict[str, Any] = {"machine": machine()}
    # Ready means that the default of every task is loaded, so all of them are.
    models = [REALISTIC, SMALL, "mtcnn", "genconvit-demo", "micro-dit-demo"]
    entry = f"{REALISTIC}=convnext:tiny-1k-224"
    with running(models, [sys.executable, "-m", "load_tests.entries", entry]) as system:
        report["classify"] = classify(system, options.seconds, options.rounds)
        report["ratios"] = ratios(report["classify"])
        if options.video:
            report["video"] = video(system)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gateway.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "gateway.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
