"""Training of a demo model by one command: progress on the terminal, weights and a record in a folder."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.demo.recipes import recipe

RECORD = "training.json"
# Share of the training between two lines of a log, where there is no terminal for a bar.
LOG_EVERY = 0.05


def train(
    model_id: str, folder: Path, device: str = "cpu", seed: int = 0, steps: int | None = None
) -> dict[str, float]:
    """Train `model_id` from scratch and put its parts and `training.json` into `folder`.

    What `folder` held before is replaced only once training has succeeded. `device` is torch's name
    of it; `steps` shortens the training (for a trial). Returns the held-out scores, which are
    also printed. Raises UnknownRecipe.
    """
    chosen = recipe(model_id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as parent:
        staged = Path(parent) / folder.name
        staged.mkdir()
        with Progress(
            TextColumn("[bold]{task.fields[model]}"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        ) as progress:
            bar = progress.add_task("starting", total=1.0, model=model_id)

            told = 0.0

            def report(share: float, stage: str) -> None:
                nonlocal told
                progress.update(bar, completed=share, description=stage)
                if not console.is_terminal and share >= told:
                    console.print(f"{model_id}: {share:.0%}, {stage}")
                    told = share + LOG_EVERY

            scores = chosen.train(staged, device, seed, report, steps=steps)
        minutes = (time.monotonic() - started) / 60
        record = {
            "model": model_id,
            "seed": seed,
            "steps": steps or chosen.STEPS,
            "device": _device_name(device),
            "minutes": round(minutes, 1),
            "torch": torch.__version__,
            "held_out": {name: round(score, 5) for name, score in scores.items()},
        }
        (staged / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        if folder.exists():
            folder.rename(Path(parent) / "replaced")
        staged.rename(folder)
    for name, score in scores.items():
        console.print(f"{model_id}: held-out {name} {score:.4f}")
    console.print(f"{model_id}: {minutes:.1f} minutes, weights in {folder}")
    return scores


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, threads: {torch.get_num_threads()}"
