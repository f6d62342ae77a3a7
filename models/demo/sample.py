"""Inputs to try: a drawn picture, drawn clips, a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from models.demo import clips, details, motions, shapes

__all__ = ["TASKS", "SampleTask", "UnknownTask", "write_sample"]

SampleTask = Literal["classify", "deepfake", "generate", "segment", "upscale", "video"]
TASKS: tuple[str, ...] = get_args(SampleTask)
PICTURE_SIDE = 256


class UnknownTask(ValueError):
    """No sample for that task; the message lists the tasks there are."""


def write_sample(task: str, path: Path, seed: int = 0, manipulated: bool = True) -> str:
    """Write an input for `task` to `path` and return what it shows, the right answer included.

    `classify`: a PNG (or what the suffix of `path` says) of one coloured shape, 256 x 256.
    `deepfake`: an MP4 of two seconds, manipulated or real. `generate`: a prompt as text.
    `segment`: a PNG of several shapes, 256 x 256. `upscale`: a PNG of lines and letters, 64 x 64.
    `video`: an MP4 of two seconds in which a shape moves.
    All are held out: seed 0 is the first that no demo model was trained on.
    Raises UnknownTask; ValueError for a negative seed or a suffix that is no picture format.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if task == "classify":
        pixels, scene = shapes.draw(shapes.HELD_OUT + seed, PICTURE_SIDE)
        Image.fromarray(pixels).save(path)
        return scene.caption
    if task == "deepfake":
        clips.write_clip(path, clips.HELD_OUT + seed, manipulated)
        return "a manipulated clip" if manipulated else "a real clip"
    if task == "generate":
        scene = shapes.draw(shapes.HELD_OUT + seed, objects=None)[1]
        path.write_text(scene.caption + "\n")
        return scene.caption
    if task == "segment":
        pixels, scene = shapes.draw(shapes.HELD_OUT + seed, PICTURE_SIDE, 4)
        Image.fromarray(pixels).save(path)
        return scene.caption
    if task == "upscale":
        Image.fromarray(details.small(details.draw(details.HELD_OUT + seed, 128), 2)).save(path)
        return "lines and letters, 64 x 64 pixels"
    if task == "video":
        path.write_bytes(motions.clip_bytes(motions.HELD_OUT + seed))
        return f"a shape that {motions.LABELS[motions.motion(motions.HELD_OUT + seed).label]}"
    raise UnknownTask(f"no sample for {task!r}; there are: {', '.join(TASKS)}")
