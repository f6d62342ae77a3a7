"""How fast each classifier is in every runtime, side by side, and how far from eager float32.

    python -m load_tests.models [--models convnext swin:small-1k-224] [--seconds 4] [--threads 2]
                                [--batches 1 8] [--without compile]

The networks are published sizes with random weights. They run from `uint8` pixels to probabilities, in
one process, in turn: each contender makes a pass, then the next, until each has had its seconds; the
figure is from the median pass. `reference` is timm's or transformers' network in eager float32 with the same steps before
and behind it, where they have it. Results go to load_tests/results/models.{json,md}, after each network.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CvtConfig, CvtForImageClassification

from load_tests.system import machine
from models.architecture import Architecture
from models.layers.classifier import Scores
from models.layers.graph import FeedForward, Run, run_eager
from models.registry import architectures, variant
from models.runtimes.choice import accelerate, agreement, prepared, trials
from models.serving import Arrays, Device
from service.triton.cards import Card, Task, WeightsRecord

RESULTS = Path(__file__).parent / "results"
CONTENDERS = (
    "eager float32",
    "eager bfloat16",
    "compile bfloat16",
    "openvino float32",
    "openvino bfloat16",
)


class Logits(nn.Module):
    """A network of transformers that answers with its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image).logits


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name)


# The libraries' network for the variant that is measured without another one being named.
REFERENCES: Mapping[str, tuple[str, Callable[[], nn.Module]]] = {
    "convit:tiny": ("timm convit_tiny", _timm("convit_tiny")),
    "convnext:tiny-1k-224": ("timm convnext_tiny", _timm("convnext_tiny")),
    "crossvit:tiny": ("timm crossvit_tiny_240", _timm("crossvit_tiny_240")),
    "cvt:13-1k-224": (
        "transformers CvT-13",
        lambda: Logits(CvtForImageClassification(CvtConfig(num_labels=1000))),
    ),
    "mae-thorax:vit-small-nih": ("timm vit_small_patch16_224", _timm("vit_small_patch16_224")),
    "next-vit:small-1k-224": ("timm nextvit_small", _timm("nextvit_small")),
    "swin:tiny-1k-224": (
        "timm swin_tiny_patch4_window7_224",
        _timm("swin_tiny_patch4_window7_224"),
    ),
    "tinyvit:5m-1k-224": ("timm tiny_vit_5m_224", _timm("tiny_vit_5m_224")),
    "tnt:small": ("timm tnt_s_patch16_224", _timm("tnt_s_patch16_224")),
}


def written(made: Architecture, name: str, folder: Path) -> Card:
    """Write random weights of a variant into `folder` and return its card."""
    torch.manual_seed(0)
    state = made.network(made.config(name)).state_dict()
    save_file({key: value.clone() for key, value in state.items()}, folder / "model.safetensors")
    return made.card(name, weights=WeightsRecord(kind="random"))


def contenders(
    spec: str, card: Card, folder: Path, exact: FeedForward, without: set[str]
) -> tuple[dict[str, Run], dict[str, str]]:
    """Return what is measured of a network, and why the rest of it is not."""
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    if spec in REFERENCES:
        network = REFERENCES[spec][1]().eval()
        reference = Scores(network, card, Device())
        runs["reference"] = partial(run_eager, reference)
    for name in CONTENDERS:
        runtime, numbers = name.split()
        if runtime in without:
            continue
        kind = "torch" if runtime == "eager" else runtime
        try:
            (runs[name],) = prepared(kind, numbers, card, folder, exact).values()  # type: ignore[arg-type]
            runs[name](trials(card, exact.graph, 2))
        except Exception as error:
            runs.pop(name, None)
            failed[name] = " ".join(str(error).split())[:200]
    return runs, failed


def rates(runs: Mapping[str, Run], inputs: Arrays, seconds: float) -> dict[str, float]:
    """Return images/s of each contender, from its median pass."""
    count = len(next(iter(inputs.values())))
    passes: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(inputs)
    until = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < until or min(map(len, passes.values())) < 3:
        for name, run in runs.items():
            start = time.perf_counter()
            run(inputs)
            passes[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(times) for name, times in passes.items()}


def measure(spec: str, batches: list[int], seconds: float, without: set[str]) -> dict[str, Any]:
    """Return everything that is measured of `slug:variant`."""
    made, chosen = variant(spec)
    with tempfile.TemporaryDirectory(prefix="vitrine-models-") as directory:
        folder = Path(directory)
        card = written(made, chosen.name, folder)
        served = accelerate(card, folder)
        exact = made.load(card, folder, Device())
        assert isinstance(exact, FeedForward)
        runs, failed = contenders(spec, card, folder, exact, without)
        inputs = [trials(card, exact.graph, count) for count in (8, 1)]
        truth: list[Arrays] = [run_eager(exact.graph, arrays) for arrays in inputs]
        errors = {
            name: agreement(truth, [run(arrays) for arrays in inputs], float("inf")).error
            for name, run in runs.items()
            if name != "reference"
        }
        default = f"{'eager' if served.runtime == 'torch' else served.runtime} {served.precision}"
        return {
            "default": default,
            "reference": REFERENCES[spec][0] if spec in REFERENCES else "our own eager float32",
            "parameters": sum(p.numel() for p in exact.graph.parameters()),
            "reasons": served.acceleration.reasons if served.acceleration else (),
            "failed": failed,
            "errors": errors,
            "images_per_second": {
                str(count): rates(runs, trials(card, exact.graph, count), seconds)
                for count in batches
            },
        }


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    on = report["machine"]
    names = ("reference", *(n for n in CONTENDERS if n.split()[0] not in report["without"]))
    lines = [
        "# Classifiers in every runtime",
        "",
        f"`python -m load_tests.models` on {on['cpu']}, {on['cores']} cores "
        f"({', '.join(on['instructions']) or 'no bfloat16'}), load {on['load_before']} before, "
        f"{report['threads']} threads, {report['seconds']:g} s for each figure; torch {on['torch']}, OpenVINO "
        f"{on['openvino']}. Images/s, and in brackets how many times eager float32; **bold** is what `auto` "
        "takes. Random weights. Without a reference in timm or transformers the reference is eager float32.",
    ]
    for batch in report["batches"]:
        lines += [
            "",
            f"## Batch {batch}",
            "",
            f"| network | {' | '.join(names)} |",
            "|---|" + "---|" * len(names),
        ]
        for spec, found in report["models"].items():
            measured = found["images_per_second"][str(batch)]
            cells = [_cell(name, measured, found["default"]) for name in names]
            lines.append(f"| `{spec}` | {' | '.join(cells)} |")
    others = names[2:]
    lines += [
        "",
        "## Largest difference from eager float32, over the largest probability",
        "",
        f"| network | {' | '.join(others)} |",
        "|---|" + "---|" * len(others),
    ]
    for spec, found in report["models"].items():
        shown = [f"{found['errors'][n]:.1e}" if n in found["errors"] else "–" for n in others]
        lines.append(f"| `{spec}` | {' | '.join(shown)} |")
    notes = [
        f"- `{spec}`, {name}: {reason}"
        for spec, found in report["models"].items()
        for name, reason in found["failed"].items()
    ]
    return "\n".join([*lines, *(["", "## What does not run", "", *notes] if notes else [])]) + "\n"


def _cell(name: str, measured: dict[str, float], default: str) -> str:
    if name not in measured:
        return "–"
    rate = measured[name]
    shown = f"{rate:.3g} ({rate / measured['eager float32']:.2f})"
    return f"**{shown}**" if name == default else shown


def _instructions() -> list[str]:
    flags = Path("/proc/cpuinfo").read_text().split()
    return [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]


def main() -> None:
    known = architectures()
    classifiers = [slug for slug, made in known.items() if made.task is Task.CLASSIFICATION]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=classifiers, metavar="SLUG[:VARIANT]")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=4, help="for each contender and batch")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--without", nargs="+", default=[], choices=["compile", "openvino"])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "machine": machine()
        | {name: importlib.metadata.version(name) for name in ("torch", "openvino")}
        | {"instructions": _instructions()},
        "threads": options.threads,
        "seconds": options.seconds,
        "batches": options.batches,
        "without": options.without,
        "models": {},
    }
    options.output.mkdir(exist_ok=True)
    for given in options.models:
        made, chosen = variant(given)
        spec = f"{made.slug}:{chosen.name}"
        print(spec, flush=True)
        found = measure(spec, options.batches, options.seconds, set(options.without))
        report["models"][spec] = found
        print(json.dumps(found["images_per_second"]), flush=True)
        (options.output / "models.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.output / "models.md").write_text(table(report))
        torch.compiler.reset()
        gc.collect()
    print(table(report))


if __name__ == "__main__":
    main()
