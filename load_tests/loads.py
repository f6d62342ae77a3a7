"""What models take: the memory of Triton with the default set, and the seconds of each model's first use.

    python -m load_tests.loads

First the default set, as it starts and after one request to each: the memory of tritonserver and of every
model's process, resident (RSS), proportional (PSS: shared pages are divided by those who share them, so
that the sum is what Triton holds), and shared with nobody. Then every shipped model, one after the other: loaded,
asked once, unloaded again. Requests go to Triton itself, with drawn faces for pictures.
Results go to load_tests/results/loads.{json,md}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import psutil
from PIL import Image
from tritonclient.grpc import service_pb2_grpc as stubs

from load_tests.system import System, machine, running
from models.demo import clips
from models.repository import cards, shipped
from models.shipped import SHIPPED
from models.signatures import ELEMENT_TYPES, SIGNATURES, TensorSpec, dims
from service.triton import tensors
from service.triton.cards import Card

RESULTS = Path(__file__).parent / "results"
LIMIT_GIB, LIMIT_S = 2, 10
MIB = 2**20
# The size of pictures that may have any.
SIDE = 256
PROMPT = "a red circle left of a blue square"

Memory = dict[str, dict[str, float]]


def memory(system: System) -> Memory:
    """Return RSS, PSS and private memory in MiB, and CPU seconds so far, of Triton's processes, by model."""
    while True:
        try:
            return {_name(process): _figures(process) for process in system.processes("triton")}
        except psutil.NoSuchProcess:  # one is just ending
            time.sleep(0.1)


def _name(process: psutil.Process) -> str:
    # <stub> <repository>/<model>/1/model.py
    server = process.name() == "tritonserver"
    return "tritonserver" if server else Path(process.cmdline()[1]).parts[-3]


def _figures(process: psutil.Process) -> dict[str, float]:
    full = process.memory_full_info()
    held = {kind: getattr(full, kind) / MIB for kind in ("rss", "pss", "uss")}
    return held | {"cpu_s": sum(process.cpu_times()[:2])}


def total(found: Memory, kind: str) -> float:
    return sum(each[kind] for each in found.values())


def picture() -> np.ndarray:
    """Return a drawn face, uint8 [H, W, 3]."""
    return next(clips.frames(clips.HELD_OUT, manipulated=False, count=1))


def value(spec: TensorSpec, card: Card) -> np.ndarray:
    """Return a batch of one for an input of a model: the drawn face, the prompt, what its card has for default."""
    parameter = card.parameters.get(spec.name.lower())
    if spec.type == "TYPE_UINT8":
        *front, height, width = (side if side > 0 else SIDE for side in dims(spec, card))
        face = Image.fromarray(picture()).resize((width, height))
        planes = np.asarray(face).transpose(2, 0, 1)
        repeated = np.resize(planes, (int(np.prod(front)), height, width))
        return np.ascontiguousarray(repeated.reshape(1, *front, height, width))
    if spec.type == "TYPE_STRING":
        return np.full((1, 1), PROMPT, object)
    default = parameter.default if parameter and parameter.default is not None else 0
    return np.full((1, *spec.dims), default, ELEMENT_TYPES[spec.type])


def ask(system: System, card: Card) -> None:
    """Have one request to a loaded model answered."""
    signature = SIGNATURES[card.task]
    inputs = {spec.name: value(spec, card) for spec in signature.inputs if not spec.optional}
    message = tensors.request(card.id, inputs)
    with grpc.insecure_channel(system.triton) as channel:
        triton = stubs.GRPCInferenceServiceStub(channel)
        if not signature.streamed:
            triton.ModelInfer(message, timeout=120)
            return
        for answer in triton.ModelStreamInfer(iter([message]), timeout=120):
            if answer.error_message:
                raise RuntimeError(answer.error_message)


def default_set(system: System) -> dict[str, Memory]:
    """Return the memory as the default set starts, and after one request to each."""
    after = {"start": memory(system)}
    for card in cards(system.directory / "repository"):
        if card.default:
            ask(system, card)
    after["one request"] = memory(system)
    return after


def first_uses(system: System) -> Iterator[tuple[Card, dict[str, float]]]:
    """Yield every shipped model with the seconds of its load and first answer, and its memory after that."""
    with httpx2.Client(base_url=system.url, timeout=180, trust_env=False) as http:
        for card in cards(system.directory / "repository"):
            _unload(system, http, card.id)
            started = time.monotonic()
            _post(http, f"/v1/models/{card.id}/load")
            loaded = time.monotonic()
            ask(system, card)
            answered = time.monotonic()
            row = {"load_s": loaded - started, "answer_s": answered - loaded}
            yield card, row | memory(system)[card.id]
            _unload(system, http, card.id)


def _post(http: httpx2.Client, path: str) -> None:
    answer = http.post(path)
    if answer.is_error:
        raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")


def _unload(system: System, http: httpx2.Client, model: str, seconds: float = 60) -> None:
    """Unload a model and wait until its process has ended."""
    _post(http, f"/v1/models/{model}/unload")
    deadline = time.monotonic() + seconds
    while model in memory(system):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the process of {model} did not end")
        time.sleep(0.2)


def measure() -> dict[str, Any]:
    """Measure everything; the results are written after each model."""
    defaults = [id for id in SHIPPED if shipped(id)[0].default]
    report: dict[str, Any] = {"machine": machine(), "models": {}}
    with running(defaults) as system:
        report["default_set"] = default_set(system)
        for card, row in first_uses(system):
            how = f"{card.runtime} {card.precision}"
            report["models"][card.id] = row | {"task": card.task, "runtime": how}
            print(card.id, how, {key: round(number, 1) for key, number in row.items()}, flush=True)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "loads.json").write_text(json.dumps(report, indent=1) + "\n")
            (RESULTS / "loads.md").write_text(table(report))
    return report


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    on, (start, asked) = report["machine"], report["default_set"].values()
    lines = [
        "# Memory and first use",
        "",
        f"`python -m load_tests.loads` on {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB, load "
        f"{on['load_before']} before. MiB; PSS divides shared pages by those who share them, `own` is shared with nobody.",
        "",
        "## The default set",
        "",
        "| process | RSS at the start | PSS | own | RSS after one request to each | PSS | own |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in sorted(asked):
        cells = [f"{m[name][k]:.0f}" for m in (start, asked) for k in ("rss", "pss", "uss")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sums = [f"**{total(m, k):.0f}**" for m in (start, asked) for k in ("rss", "pss", "uss")]
    slowest = max(row["load_s"] + row["answer_s"] for row in report["models"].values())
    lines += [
        f"| **all** | {' | '.join(sums)} |",
        "",
        f"{total(asked, 'pss') / 1024:.2f} GiB by PSS, {total(asked, 'rss') / 1024:.2f} GiB by RSS, which counts "
        "shared pages once for each process, and also where other programs on the machine share them; the aim is "
        f"{LIMIT_GIB} GiB.",
        "",
        "## First use of each model that ships",
        "",
        f"One after the other, each in a process of its own, whose CPU time counts no waiting for the cores; the slowest takes {slowest:.1f} s, the aim is {LIMIT_S} s.",
        "",
        "| model | task | runs in | load, s | first answer, s | CPU, s | RSS | PSS | own |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {id} | {row['task']} | {row['runtime']} | {row['load_s']:.1f} | {row['answer_s']:.2f} | {row['cpu_s']:.1f} "
        f"| {row['rss']:.0f} | {row['pss']:.0f} | {row['uss']:.0f} |"
        for id, row in report["models"].items()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, and return 1 if an aim is missed."""
    report = measure()
    print(table(report))
    held = total(report["default_set"]["one request"], "pss")
    slow = any(row["load_s"] + row["answer_s"] > LIMIT_S for row in report["models"].values())
    return int(slow or held > LIMIT_GIB * 1024)


if __name__ == "__main__":
    sys.exit(main())
