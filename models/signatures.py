"""The tensors of every task on the Triton side (architecture.md, section 4).

A signature belongs to the task, not to the model: whoever serves a task takes and gives these
tensors, so the gateway needs no code for a new model. `dims` leave the batch dimension out; -1 is
a size that varies. Pictures are `uint8` RGB; normalisation happens inside the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.triton.cards import Card, Task

# Triton's name of each element type, and NumPy's.
ELEMENT_TYPES: dict[str, type[np.generic]] = {
    "TYPE_UINT8": np.uint8,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP32": np.float32,
    "TYPE_STRING": np.object_,
}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its name, Triton element type and dimensions without the batch.

    An optional input may be absent; an optional output comes only to requests with the input `asked_by`.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    optional: bool = False
    asked_by: str | None = None


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a task. `streamed` answers come as many responses to one request."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    streamed: bool = False


_IMAGE = TensorSpec("IMAGE", "TYPE_UINT8", (3, -1, -1))
_SCORES = TensorSpec("SCORES", "TYPE_FP32", (-1,))
_CLASS = TensorSpec("CLASS", "TYPE_INT32", (1,), optional=True)


def _evidence(optional: bool) -> tuple[TensorSpec, ...]:
    """Where the evidence for CLASS lies, HEATMAP [h, w] in 0..1, and the METHOD that found it."""
    asked_by = "CLASS" if optional else None
    return (
        TensorSpec("HEATMAP", "TYPE_FP32", (-1, -1), optional, asked_by),
        TensorSpec("METHOD", "TYPE_STRING", (1,), optional, asked_by),
    )


SIGNATURES: dict[Task, Signature] = {
    # A request with CLASS (-1: the most probable one) is answered with where the evidence for it lies.
    Task.CLASSIFICATION: Signature((_IMAGE, _CLASS), (_SCORES, *_evidence(optional=True))),
    # Networks made to explain; they always do. Without CLASS: the most probable one.
    Task.EXPLANATION: Signature((_IMAGE, _CLASS), (_SCORES, *_evidence(optional=False))),
    # A request with DENSE (1) is answered with the map of features too, [h, w, C]; one with what came BEFORE and AFTER,
    # of models that can tell, with the probability that the three are IN_ORDER.
    Task.EMBEDDING: Signature(
        (
            _IMAGE,
            TensorSpec("DENSE", "TYPE_INT32", (1,), optional=True),
            TensorSpec("BEFORE", "TYPE_UINT8", (3, -1, -1), optional=True),
            TensorSpec("AFTER", "TYPE_UINT8", (3, -1, -1), optional=True),
        ),
        (
            TensorSpec("EMBEDDING", "TYPE_FP32", (-1,)),
            TensorSpec("FEATURES", "TYPE_FP32", (-1, -1, -1), optional=True, asked_by="DENSE"),
            TensorSpec("IN_ORDER", "TYPE_FP32", (1,), optional=True, asked_by="BEFORE"),
        ),
    ),
    # IMAGE is the whole picture (card.image: `squash` or `fit`); networks fill it up themselves as they need it.
    # MASK [H, W] at SIZE (height, width; without it, the size of IMAGE): networks resize their logits to it before
    # they decide. It holds indices of labels (card.segmentation: semantic), numbers of SEGMENTS from 1 on with 0 for
    # nothing (panoptic, instance), or 0 and 1 (binary). SEGMENTS has a row (id, class, score) for each value there is
    # in MASK, but for the 0 that stands for nothing: the id is that value, the class an index of labels, the score
    # the network's confidence (semantic, binary: the mean probability there). A request with PROBABILITY (1) is
    # answered, by binary models, with the map that MASK was decided from. DEPTH (0: as the network's gate decides) is
    # how many layers of its encoder a network with such a gate runs; the request is answered with DEPTH_USED.
    # One request is one picture: SEGMENTS of several differ in length.
    Task.SEGMENTATION: Signature(
        (
            _IMAGE,
            TensorSpec("SIZE", "TYPE_INT32", (2,), optional=True),
            TensorSpec("DEPTH", "TYPE_INT32", (1,), optional=True),
            TensorSpec("PROBABILITY", "TYPE_INT32", (1,), optional=True),
        ),
        (
            TensorSpec("MASK", "TYPE_INT32", (-1, -1)),
            TensorSpec("SEGMENTS", "TYPE_FP32", (-1, 3)),
            TensorSpec(
                "PROBABILITIES", "TYPE_FP32", (-1, -1), optional=True, asked_by="PROBABILITY"
            ),
            TensorSpec("DEPTH_USED", "TYPE_INT32", (1,), optional=True, asked_by="DEPTH"),
        ),
    ),
    # SHARE of the picture is hidden, SEED decides which parts. RESTORED has the prediction where HIDDEN [h, w] is 1.
    Task.RECONSTRUCTION: Signature(
        (
            _IMAGE,
            TensorSpec("SHARE", "TYPE_FP32", (1,), optional=True),
            TensorSpec("SEED", "TYPE_INT64", (1,), optional=True),
        ),
        (
            TensorSpec("RESTORED", "TYPE_UINT8", (3, -1, -1)),
            TensorSpec("HIDDEN", "TYPE_UINT8", (-1, -1)),
        ),
    ),
    # Both of any size, the second one `scale` times larger. A request with UNROUNDED (1) is answered with LEVELS too: the
    # same in units of 8 bits, neither rounded nor bounded.
    Task.SUPER_RESOLUTION: Signature(
        (_IMAGE, TensorSpec("UNROUNDED", "TYPE_INT32", (1,), optional=True)),
        (
            _IMAGE,
            TensorSpec("LEVELS", "TYPE_FP32", (3, -1, -1), optional=True, asked_by="UNROUNDED"),
        ),
    ),
    # One request is one view of a video or a batch of them: frames in order of time.
    Task.VIDEO_CLASSIFICATION: Signature(
        (TensorSpec("FRAMES", "TYPE_UINT8", (-1, 3, -1, -1)),), (_SCORES,)
    ),
    # One request is one face crop or a batch of them. SCORES are (real, fake); MEMBERS holds the same
    # pair for each network of an ensemble, in the order of the card's `members`.
    Task.DEEPFAKE: Signature(
        (
            TensorSpec("FACES", "TYPE_UINT8", (3, -1, -1)),
            TensorSpec("SEED", "TYPE_INT64", (1,), optional=True),
        ),
        (TensorSpec("SCORES", "TYPE_FP32", (2,)), TensorSpec("MEMBERS", "TYPE_FP32", (-1, 2))),
    ),
    # What scores above THRESHOLD, MAX_DETECTIONS at most, best first; rows beyond are padding with score 0. BOXES xyxy in
    # 0..1 of the picture; MASKS, of models that draw them, are probabilities (255 is 1) on a grid over each box.
    Task.DETECTION: Signature(
        (
            _IMAGE,
            TensorSpec("THRESHOLD", "TYPE_FP32", (1,), optional=True),
            TensorSpec("MAX_DETECTIONS", "TYPE_INT32", (1,), optional=True),
        ),
        (
            TensorSpec("BOXES", "TYPE_FP32", (-1, 4)),
            _SCORES,
            TensorSpec("CLASSES", "TYPE_INT32", (-1,)),
            TensorSpec("MASKS", "TYPE_UINT8", (-1, -1, -1), optional=True),
        ),
    ),
    # BOXES xyxy in 0..1 of the picture, LANDMARKS five (x, y) in 0..1 (eyes, nose, mouth corners);
    # rows beyond the faces found are padding with score 0, best score first.
    Task.FACE_DETECTION: Signature(
        (_IMAGE,),
        (
            TensorSpec("BOXES", "TYPE_FP32", (-1, 4)),
            _SCORES,
            TensorSpec("LANDMARKS", "TYPE_FP32", (-1, 5, 2)),
        ),
    ),
    # PROGRESS (step, steps) after every denoising step, optional PREVIEWs, then one response with IMAGE [H, W, 3].
    Task.TEXT_TO_IMAGE: Signature(
        (
            TensorSpec("PROMPT", "TYPE_STRING", (1,)),
            TensorSpec("SEED", "TYPE_INT64", (1,)),
            TensorSpec("STEPS", "TYPE_INT32", (1,)),
            TensorSpec("GUIDANCE", "TYPE_FP32", (1,)),
            TensorSpec("WIDTH", "TYPE_INT32", (1,)),
            TensorSpec("HEIGHT", "TYPE_INT32", (1,)),
        ),
        (
            TensorSpec("PROGRESS", "TYPE_FP32", (2,)),
            TensorSpec("PREVIEW", "TYPE_UINT8", (-1, -1, 3)),
            TensorSpec("IMAGE", "TYPE_UINT8", (-1, -1, 3)),
        ),
        streamed=True,
    ),
}


def dims(spec: TensorSpec, card: Card) -> list[int]:
    """Return the tensor's dimensions; a picture's size, and the number of frames, is the card's where that fixes one."""
    image = card.image
    if spec.type == "TYPE_UINT8" and spec.dims[-2:] == (-1, -1) and image is not None:
        size = [image.height or -1, image.width or -1] if image.is_fixed else [-1, -1]
        frames = [card.clip.frames if card.clip else -1] if len(spec.dims) == 4 else []
        channels = 1 if image.colour == "L" else 3
        if card.clip and not frames:
            # A stack of frames as the channels of one picture.
            channels *= card.clip.frames
        return [*frames, channels, *size]
    return list(spec.dims)
