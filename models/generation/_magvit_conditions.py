"""MAGVIT's ten tasks: which part of a clip is known, and what stands in for the rest (section 3.3).

A condition is a clip of full size, so that the same tokenizer reads it. Only places of the token
grid that lie in the known part count (`models/generation/_magvit_decoding.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.generation._magvit_transformer import Special


@dataclass(frozen=True)
class Condition:
    """The clip that stands for the condition [B, 3, T, H, W]; which of its pixels [B, 1, T, H, W] and of its
    tokens' places [B, t, h, w] are known, bool."""

    video: Tensor
    pixels: Tensor
    places: Tensor


Shape = tuple[int, int, int]
Region = Callable[[Shape], Tensor]


@dataclass(frozen=True)
class Task:
    """A task's token, the known region in a clip of (frames, rows, columns), and what is put elsewhere.

    With `edges` the nearest known pixel is repeated outside, else there is black. `labelled` tasks are told the class.
    """

    token: Special
    given: Region | None = None
    edges: bool = False
    labelled: bool = False


def _middle(size: int) -> Tensor:
    index = torch.arange(size)
    return (index >= size // 4) & (index < size * 3 // 4)


def _sliding(shape: Shape) -> Tensor:
    """Return bool [T, 1, W]: a window of half the width that moves from the left edge to the right."""
    frames, _, columns = shape
    start = torch.linspace(0, columns // 2, frames).round().long()[:, None, None]
    index = torch.arange(columns)
    return (index >= start) & (index < start + columns // 2)


def _first(shape: Shape) -> Tensor:
    return (torch.arange(shape[0]) < 1)[:, None, None]


def _ends(shape: Shape) -> Tensor:
    index = torch.arange(shape[0])
    return ((index < 1) | (index >= shape[0] - 1))[:, None, None]


def _rows(shape: Shape) -> Tensor:
    return _middle(shape[1])[None, :, None]


def _columns(shape: Shape) -> Tensor:
    return _middle(shape[2])[None, None]


def _centre(shape: Shape) -> Tensor:
    return _rows(shape) & _columns(shape)


def _around_centre(shape: Shape) -> Tensor:
    return ~_centre(shape)


def _around_sliding(shape: Shape) -> Tensor:
    return ~(_sliding(shape) & _rows(shape))


# The released networks for many tasks know inpainting by outpainting's token.
TASKS = {
    "full_generation": Task(Special.FULL_GENERATION, labelled=True),
    "frame_prediction": Task(Special.FRAME_PREDICTION, _first, edges=True),
    "frame_prediction_class": Task(Special.FRAME_PREDICTION, _first, edges=True, labelled=True),
    "frame_interpolation": Task(Special.INTERPOLATION, _ends),
    "outpainting_c": Task(Special.OUTPAINTING, _centre, edges=True),
    "outpainting_v": Task(Special.OUTPAINTING, _columns, edges=True),
    "outpainting_h": Task(Special.OUTPAINTING, _rows, edges=True),
    "outpainting_dv": Task(Special.OUTPAINTING, _sliding),
    "inpainting_c": Task(Special.OUTPAINTING, _around_centre),
    "inpainting_dv": Task(Special.OUTPAINTING, _around_sliding),
}


def condition(task: str, video: Tensor, latent_shape: Shape) -> Condition:
    """Make the condition of one of `TASKS` from a clip [B, 3, T, H, W] whose tokens are `latent_shape`.

    Only the clip's known pixels matter. Raises KeyError for an unknown task, ValueError for one without condition.
    """
    given = TASKS[task].given
    if given is None:
        raise ValueError(f"{task} has no condition")
    shape = (video.shape[2], video.shape[3], video.shape[4])
    known = given(shape).expand(shape).to(video.device)
    if task == "frame_interpolation":
        made = _blended(video)
    elif TASKS[task].edges:
        made = _edges_repeated(video, known)
    else:
        made = video.masked_fill(~known, 0.0)
    places = given(latent_shape).expand(latent_shape).to(video.device)
    return Condition(
        made,
        known.expand(len(video), 1, *shape),
        places.expand(len(video), *latent_shape),
    )


def _blended(video: Tensor) -> Tensor:
    """Return the clip whose frames go from its first to its last in equal steps."""
    share = torch.linspace(0, 1, video.shape[2], device=video.device).view(-1, 1, 1)
    return torch.lerp(video[:, :, :1], video[:, :, -1:], share)


def _edges_repeated(video: Tensor, known: Tensor) -> Tensor:
    """Return the clip in which the pixels of a known box [T, H, W] go on to the borders."""
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        inside = known.any(others[1]).any(others[0]).nonzero()[:, 0]
        index = torch.arange(known.shape[axis], device=video.device)
        index = index.clamp(int(inside[0]), int(inside[-1]))
        video = video.index_select(axis + 2, index)
    return video
