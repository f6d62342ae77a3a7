"""Training of `genconvit-demo`: tells drawn faces from manipulated ones.

Faces reach the network as they do in service: drawn clips through H.264, the box of the shipped
face detector without a margin, resized by area. "ed" learns by cross entropy, "vae" by cross entropy
and the mean squared error of the rebuilt face, as in the paper; both in the same steps.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from models.deepfake.genconvit import GenConViT
from models.demo import clips
from models.demo.recipes import Report, training_device
from models.demo.recipes.auc import auc
from models.layers.pixels import Normalisation
from models.registry import architecture, variant
from models.serving import Device, Predictor
from models.shipped import SHIPPED, shipped_parts
from service.media.faces import Box, crop_face, detection_input, pixel_box
from service.triton.cards import WeightsRecord

STEPS = 2000
BATCH = 32
# Pairs of a real and a manipulated clip of the same person.
PAIRS = 600
FACES_A_CLIP = 3
LEARNING_RATE = 2e-3
WARM_UP = 0.05
# Further pairs, by which the thresholds are set.
CALIBRATION_PAIRS = 60
HELD_OUT_PAIRS = 40
SIDE = 112
REAL, FAKE = 1, 0

# Whether a clip is manipulated, and its faces, uint8 [3, 112, 112] each.
Found = list[tuple[bool, list[np.ndarray]]]


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """Train with AdamW and a cosine schedule; see `models.demo.recipes.Recipe`."""
    steps = steps or STEPS
    pairs, further = min(PAIRS, 2 * steps), min(CALIBRATION_PAIRS, 2 * steps)
    first = seed * (PAIRS + CALIBRATION_PAIRS) % (clips.HELD_OUT - PAIRS - CALIBRATION_PAIRS)
    seeds = range(first, first + pairs + further)
    faces = drawn_faces(seeds[:pairs], partial(_part, report, 0.0, 0.3))
    network = fit(faces, device, seed, steps, partial(_part, report, 0.3, 0.9))
    report(0.9, "setting the thresholds")
    others = [clip for pair in _in_processes(served_faces_of_pair, seeds[pairs:]) for clip in pair]
    calibrate(network, others, Device(device))
    state = {name: value.half().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    held_out = range(clips.HELD_OUT, clips.HELD_OUT + min(HELD_OUT_PAIRS, pairs))
    return measure(folder, held_out, Device(device), partial(_part, report, 0.95, 1.0))


def drawn_faces(seeds: range, report: Report) -> np.ndarray:
    """Return faces uint8 [N, 2, 3, 112, 112]: each manipulated face and the real one of its frame."""
    faces: list[np.ndarray] = []
    for done, found in enumerate(_in_processes(faces_of_pair, seeds), start=1):
        if len(found) == 2:
            (_, real), (_, fake) = found
            faces += [np.stack(both) for both in zip(fake, real, strict=True)]
        report(done / len(seeds), f"drawing clips {done}/{len(seeds)}")
    return np.stack(faces)


def fit(faces: np.ndarray, device: str, seed: int, steps: int, report: Report) -> GenConViT:
    """Train both networks on faces [N, 2, 3, 112, 112], as `drawn_faces` gives them.

    A batch holds both faces of each pair, so that nothing but the manipulation tells them apart.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    paper = architecture("genconvit")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    assert card.image is not None
    on = training_device(device)
    normalise = Normalisation(card.image, on)
    network = paper.network(paper.config("demo"))
    assert isinstance(network, GenConViT)
    network = network.to(on.torch, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=max(steps, 2), pct_start=WARM_UP
    )
    for step in range(steps):
        chosen = rng.integers(len(faces), size=BATCH // 2)
        image = normalise(_varied(faces[chosen], rng).reshape(-1, 3, SIDE, SIDE))
        target = torch.tensor([FAKE, REAL], device=on.torch).repeat(BATCH // 2)
        noise = torch.randn(BATCH, network.latent).to(on.torch)
        with on.autocast():
            by_ed = network.ed(image)
            copy = network.vae.rebuild(image, noise)
            by_vae = network.vae.classify(image, copy)
        rebuilt = F.interpolate(copy.float(), size=image.shape[-2:])
        losses = {
            "ed": F.cross_entropy(by_ed.float(), target),
            "vae": F.cross_entropy(by_vae.float(), target),
            "copy": F.mse_loss(rebuilt, image),
        }
        optimiser.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros((), device=on.torch)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 10 == 0:
            told = ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            report(step / steps, f"step {step}/{steps}, losses: {told}")
    return network.eval()


def calibrate(network: GenConViT, drawn: Found, device: Device) -> None:
    """Make 0.5 the score at which each network errs as often on real as on manipulated clips.

    `drawn`: clips that the network was not trained on, their faces as the service takes them.
    """
    paper = architecture("genconvit")
    image = paper.card("demo", weights=WeightsRecord(kind="demo")).image
    assert image is not None
    normalise = Normalisation(image, device)
    members = (network.ed, network.vae)
    for member in members:
        balance(member.fc2)
    noise = torch.randn(1, network.latent, generator=torch.Generator().manual_seed(0))
    logits: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for manipulated, crops in drawn:
        if crops:
            faces = normalise(np.stack(crops))
            with torch.inference_mode():
                found = network(faces, noise.expand(len(crops), -1).to(device.torch))
            logits[manipulated].append(found[..., FAKE].mean(0).cpu().numpy())
    for index, member in enumerate(members):
        real, fake = (np.array(logits[manipulated])[:, index] for manipulated in (False, True))
        middle = _equal_error(real, fake)
        with torch.no_grad():
            member.fc2.bias[FAKE] -= middle
            member.fc2.bias[REAL] += middle


def measure(folder: Path, seeds: range, device: Device, report: Report) -> dict[str, float]:
    """Return AUC and accuracy by clip of the weights in `folder`.

    One real and one manipulated clip a seed; 15 faces a clip, spread evenly; the score of a clip is
    the mean of its faces' probabilities of being fake. Clips without a face count as undecided.
    """
    paper = architecture("genconvit")
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, device)
    assert isinstance(served, Predictor)
    scores: dict[bool, list[float]] = {False: [], True: []}
    clips_with_face = 0
    for done, found in enumerate(_in_processes(served_faces_of_pair, seeds), start=1):
        for manipulated, crops in found:
            fake = 0.5
            if crops:
                clips_with_face += 1
                fake = float(served.predict({"FACES": np.stack(crops)})["SCORES"][:, 1].mean())
            scores[manipulated].append(fake)
        report(done / len(seeds), f"measuring clips {done}/{len(seeds)}")
    real, fake_scores = np.array(scores[False]), np.array(scores[True])
    threshold = card.thresholds["fake"]
    right = np.concatenate([real < threshold, fake_scores >= threshold])
    return {
        "AUC by clip": auc(real, fake_scores),
        "accuracy by clip": float(right.mean()),
        "clips with a face": clips_with_face / right.size,
    }


def balance(last: torch.nn.Linear) -> None:
    """Make the two logits each other's negative, so that their sigmoids are the softmax of before.

    Cross entropy fixes only the difference of the logits, and the service takes the sigmoid of each.
    """
    with torch.no_grad():
        for values in (last.weight, last.bias):
            difference = values[FAKE] - values[REAL]
            values[FAKE] = difference
            values[REAL] = -difference


def _equal_error(negative: np.ndarray, positive: np.ndarray) -> float:
    """Return the value that as large a share of `negative` exceeds as of `positive` falls below."""
    values = np.sort(np.concatenate([negative, positive]))
    between = (values[1:] + values[:-1]) / 2
    above = (negative[:, None] > between).mean(0)
    below = (positive[:, None] < between).mean(0)
    return float(between[np.abs(above - below).argmin()])


def faces_of_pair(seed: int) -> Found:
    """Return three faces of a short clip, cropped with the first frame's box, moved a little."""
    rng = np.random.default_rng([seed, 4])
    found = []
    for manipulated in (False, True):
        data = clips.clip_bytes(seed, manipulated, seconds=0.5, fps=10)
        pictures = _pictures(data, FACES_A_CLIP)
        box = _face(pictures[0])
        if box:
            crops = [crop_face(picture, _moved(box, rng), SIDE, SIDE) for picture in pictures]
            found.append((manipulated, crops))
    return found


def served_faces_of_pair(seed: int) -> Found:
    """Return the faces of a clip of two seconds exactly as the service takes them."""
    found = []
    for manipulated in (False, True):
        pictures = _pictures(clips.clip_bytes(seed, manipulated), 15)
        boxes = [(picture, _face(picture)) for picture in pictures]
        crops = [crop_face(picture, box, SIDE, SIDE) for picture, box in boxes if box]
        found.append((manipulated, crops))
    return found


def _pictures(data: bytes, count: int) -> list[Image.Image]:
    """Decode `count` evenly spread frames of a clip."""
    with av.open(io.BytesIO(data)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    return [pictures[k] for k in np.linspace(0, len(pictures) - 1, count).astype(int)]


@cache
def _detector() -> Predictor:
    spec, kind = SHIPPED["mtcnn"]
    paper, chosen = variant(spec)
    card = paper.card(chosen.name, weights=WeightsRecord(kind=kind))
    with tempfile.TemporaryDirectory() as folder:
        for name, path in shipped_parts("mtcnn")[0].items():
            shutil.copy(path, Path(folder) / name)
        detector = paper.load(card, Path(folder), Device("cpu"))
    assert isinstance(detector, Predictor)
    return detector


def _face(picture: Image.Image) -> Box | None:
    answer = _detector().predict({"IMAGE": detection_input(picture)})
    if not answer["SCORES"].size or answer["SCORES"][0, 0] <= 0:
        return None
    return pixel_box(answer["BOXES"][0, 0], picture.size)


def _moved(box: Box, rng: np.random.Generator) -> Box:
    """Move each edge by up to 3 % of the side, as far as boxes differ from frame to frame."""
    side = min(box.right - box.left, box.bottom - box.top)
    by = np.rint(rng.uniform(-0.03, 0.03, size=4) * side).astype(int)
    return Box(box.left + by[0], box.top + by[1], box.right + by[2], box.bottom + by[3])


def _varied(faces: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror half of the pairs; change brightness, contrast and colour of each pair as a whole."""
    count = len(faces)
    mirrored = rng.uniform(size=(count, 1, 1, 1, 1)) < 0.5
    varied = np.where(mirrored, faces[..., ::-1], faces).astype(np.float32)
    gain = rng.uniform(0.85, 1.15, size=(count, 1, 1, 1, 1))
    gain = gain * rng.uniform(0.95, 1.05, size=(count, 1, 3, 1, 1))
    offset = rng.uniform(-12.0, 12.0, size=(count, 1, 1, 1, 1))
    return np.clip(varied * gain + offset, 0, 255).astype(np.uint8)


def _in_processes(work: Callable[[int], Found], seeds: range) -> Iterator[Found]:
    """Run `work` over the seeds on every core, results in order; a process is worth eight seeds."""
    workers = min(os.cpu_count() or 1, 16, len(seeds) // 8)
    if workers <= 1:
        yield from map(work, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(work, seeds, chunksize=4)


def _part(report: Report, start: float, end: float, share: float, stage: str) -> None:
    report(start + (end - start) * share, stage)
