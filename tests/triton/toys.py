"""Repository entries with toy networks: the whole backend, but arithmetic that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

from models.repository import config, write_entry
from service.triton.cards import Card

# What a toy entry's model.py defines before it becomes the shared backend. `brightness` scores a picture
# by its mean; a picture whose first pixel is 13 is refused, one of 66 makes the network fail, 99 kills
# the process. `counter` streams one PROGRESS a step. `imprint` makes a picture that only its prompt can
# have made; a prompt that holds "fail", "refuse" or "poison" fails, is refused, or kills the process.
TOY_MODULE = """
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import torch

from models.architecture import Architecture, Variant
from models.registry import register
from models.serving import Generator, InvalidInput, Predictor
from service.triton.cards import ImageInput, Licence, Paper, Task


class Brightness(Predictor):
    def __init__(self, dtype):
        self.dtype = dtype

    def predict(self, batch):
        images = batch["IMAGE"]
        first = images[:, 0, 0, 0]
        if (first == 13).any():
            raise InvalidInput("first pixel 13")
        if (first == 66).any():
            raise RuntimeError("cannot compute 66")
        if (first == 99).any():
            os._exit(1)
        time.sleep(0.02)
        mean = images.reshape(len(images), -1).mean(axis=1, dtype=np.float32)
        bf16 = float(self.dtype is torch.bfloat16)
        return {"SCORES": np.stack([mean, np.full_like(mean, len(images)), np.full_like(mean, bf16)], 1)}


class Toy(Architecture):
    title = "toy"
    paper = Paper(slug="toy", title="Toy", year=2026)
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")

    def network(self, config):
        return torch.nn.Identity()

    def load(self, card, folder, device):
        return self.serve(self.network({}), card, device, folder)


@register
class BrightnessToy(Toy):
    slug = "brightness"
    task = Task.CLASSIFICATION
    variants = {"toy": Variant("toy", {}, image=ImageInput(height=8, width=8), labels=("mean", "batch", "bf16"))}

    def serve(self, network, card, device, folder):
        return Brightness(device.dtype)


class Count(Generator):
    def key(self, request):
        if request["STEPS"][0] < 1:
            raise InvalidInput("steps must be at least 1")
        return int(request["STEPS"][0])

    def generate(self, requests, cancelled):
        steps = self.key(requests[0])
        log = Path(__file__).parent / "steps.log"
        for step in range(steps):
            time.sleep(0.05)
            live = [i for i in range(len(requests)) if not cancelled(i)]
            with log.open("a") as sink:
                sink.write(f"{len(live)}\\n")
            for i in live:
                yield i, {"PROGRESS": np.array([step + 1, steps], np.float32)}
        for i in live:
            if requests[i]["PROMPT"][0] == b"fail":
                raise RuntimeError("told to fail")
            image = np.full((2, 2, 3), int(requests[i]["SEED"][0]), np.uint8)
            yield i, {"IMAGE": image}


@register
class CounterToy(Toy):
    slug = "counter"
    task = Task.TEXT_TO_IMAGE
    queue_delay_us = 50_000
    variants = {"toy": Variant("toy", {})}

    def serve(self, network, card, device, folder):
        return Count()


class Imprint(Generator):
    def key(self, request):
        return int(request["STEPS"][0])

    def generate(self, requests, cancelled):
        prompts = [request["PROMPT"][0] for request in requests]
        if any(b"refuse" in prompt for prompt in prompts):
            raise InvalidInput("a prompt to refuse")
        if any(b"poison" in prompt for prompt in prompts):
            os._exit(1)
        steps = self.key(requests[0])
        for step in range(steps):
            time.sleep(0.005)
            for i in range(len(requests)):
                yield i, {"PROGRESS": np.array([step + 1, steps], np.float32)}
        if any(b"fail" in prompt for prompt in prompts):
            raise RuntimeError("told to fail")
        for i, prompt in enumerate(prompts):
            drawn = hashlib.shake_256(prompt).digest(32 * 32 * 3)
            yield i, {"IMAGE": np.frombuffer(drawn, np.uint8).reshape(32, 32, 3)}


@register
class ImprintToy(Toy):
    slug = "imprint"
    task = Task.TEXT_TO_IMAGE
    queue_delay_us = 1000
    # A batch of one: what happens to one request is not the others' doing.
    max_batch = 1
    preferred_batches = ()
    variants = {"toy": Variant("toy", {})}

    def serve(self, network, card, device, folder):
        return Imprint()


from models.backend import TritonPythonModel  # noqa: E402, F401
"""


def write_toy(repository: Path, slug: str, id: str, **changes: object) -> Card:
    """Write an entry served by the toy architecture `slug` and return its card."""
    import models.registry
    from models.registry import architecture

    if slug not in models.registry._ARCHITECTURES:
        exec(TOY_MODULE.split("from models.backend")[0], {"__name__": "toys"})
    from service.triton.cards import WeightsRecord

    card = architecture(slug).card("toy", id=id, weights=WeightsRecord(kind="random"))
    card = card.model_copy(update=changes)
    assert config(card, "cpu").name == id
    entry = write_entry(repository, card, {}, "cpu")
    (entry / "1" / "model.py").write_text(TOY_MODULE)
    return card
