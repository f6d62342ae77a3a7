"""The drawn data: the same seed gives the same pixels, and what is said about them is true."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.demo import clips, faces, sample, shapes

seeds = st.integers(0, 2 * shapes.HELD_OUT)


def decoded(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_labels_name_every_colour_of_every_shape_once() -> None:
    assert len(set(shapes.LABELS)) == len(shapes.SHAPES) * len(shapes.COLOURS) == 36
    assert shapes.LABELS[shapes.label("star", "blue")] == "blue star"


@pytest.mark.parametrize("objects", [1, 2, 3, 4, None])
def test_a_scene_is_a_function_of_its_seed(objects: int | None) -> None:
    pixels, scene = shapes.draw(7, 48, objects)
    again, same = shapes.draw(7, 48, objects)
    other, _ = shapes.draw(8, 48, objects)
    assert pixels.shape == (48, 48, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, again)
    assert scene == same
    assert not np.array_equal(pixels, other)


def test_another_size_is_the_same_picture_scaled() -> None:
    small, scene = shapes.draw(11, 64, 2)
    large, bigger = shapes.draw(11, 128, 2)
    assert bigger.caption == scene.caption
    np.testing.assert_allclose(bigger.objects[1].box, 2 * np.array(scene.objects[1].box))
    reduced = np.asarray(Image.fromarray(large).reduce(2), dtype=float)
    assert np.abs(reduced - small).mean() < 2.0


def test_a_batch_holds_consecutive_seeds() -> None:
    pixels, scenes = shapes.batch(20, 3, 32, 2)
    assert pixels.shape == (3, 32, 32, 3)
    for k, scene in enumerate(scenes):
        expected, same = shapes.draw(20 + k, 32, 2)
        np.testing.assert_array_equal(pixels[k], expected)
        assert scene == same


def test_every_label_occurs_in_training_and_held_out_scenes() -> None:
    for first in (0, shapes.HELD_OUT):
        found = {shapes.draw(seed, 16)[1].label for seed in range(first, first + 400)}
        assert found == set(range(36))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 4))
def test_boxes_and_masks_are_where_the_object_is(seed: int, objects: int) -> None:
    pixels, scene = shapes.draw(seed, 96, objects)
    masks = [scene.mask(k) for k in range(objects)]
    assert sum(mask.astype(int) for mask in masks).max() == 1, "objects overlap"
    for drawn, mask in zip(scene.objects, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # A mask wants half of a pixel covered, so a sharp tip ends up to three pixels earlier.
        assert np.abs(edges - np.array(drawn.box)).max() <= 3.0
        assert 0 <= drawn.box[0] < drawn.box[2] <= 96
        assert 0 <= drawn.box[1] < drawn.box[3] <= 96
        full = shapes.coverage(drawn, 96) == 1.0
        painted = pixels[full]
        assert (painted == painted[0]).all(), "an object has one colour"
        assert named_by_hue(painted[0]) == drawn.colour


def named_by_hue(rgb: np.ndarray) -> str:
    hue = colorsys.rgb_to_hsv(*(rgb / 255.0))[0] * 360
    middles = {"red": 358, "orange": 27, "yellow": 52, "green": 135, "blue": 220, "purple": 283}
    return min(middles, key=lambda name: abs((hue - middles[name] + 180) % 360 - 180))


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_backgrounds_never_have_the_colour_of_an_object(seed: int) -> None:
    pixels, scene = shapes.draw(seed, 48)
    outside = pixels[shapes.coverage(scene.objects[0], 48) == 0.0] / 255.0
    chroma = outside.max(1) - outside.min(1)
    assert chroma.max() < 0.2


@settings(max_examples=80, deadline=None)
@given(seeds)
def test_captions_agree_with_the_geometry(seed: int) -> None:
    _, scene = shapes.draw(seed, 64, 2)
    first, second = scene.objects
    side = scene.relations[0].side
    assert scene.caption == (
        f"{shapes.article(first.name)} {first.name} {side} "
        f"{shapes.article(second.name)} {second.name}"
    )
    (x, y), (other_x, other_y) = first.centre, second.centre
    holds = {
        "left of": x < other_x,
        "right of": x > other_x,
        "above": y < other_y,
        "below": y > other_y,
    }
    assert holds[side]
    # One direction dominates, so that a caption is never a matter of opinion.
    along, across = abs(x - other_x), abs(y - other_y)
    if side in ("above", "below"):
        along, across = across, along
    assert along >= 2.0 * across
    assert first.name != second.name


def test_captions_of_one_and_of_many_objects() -> None:
    captions = [shapes.draw(seed, 16, 1)[1] for seed in range(60)]
    orange = next(scene for scene in captions if scene.objects[0].colour == "orange")
    assert orange.caption == f"an orange {orange.objects[0].shape}"
    many = shapes.draw(3, 64, 3)[1]
    names = [f"{shapes.article(o.name)} {o.name}" for o in many.objects]
    assert many.caption == f"{names[0]}, {names[1]} and {names[2]}"
    assert len(many.relations) == 3


@pytest.mark.parametrize(("size", "objects"), [(15, 1), (64, 0), (64, 5)])
def test_sizes_and_numbers_out_of_range_are_refused(size: int, objects: int) -> None:
    with pytest.raises(ValueError, match="is "):
        shapes.draw(0, size, objects)


def test_frames_are_a_function_of_the_seed() -> None:
    for manipulated in (False, True):
        once = list(clips.frames(5, manipulated, 2, size=128))
        again = list(clips.frames(5, manipulated, 2, size=128))
        np.testing.assert_array_equal(once, again)
        assert once[0].shape == (128, 128, 3)
        assert not np.array_equal(once[0], once[1])


def test_a_manipulation_changes_the_inner_face_and_nothing_else() -> None:
    changed = np.zeros((128, 128))
    for seed in range(6):
        real, fake = (next(clips.frames(seed, m, 1, size=128)) for m in (False, True))
        difference = np.abs(real.astype(int) - fake).max(2)
        assert (difference > 8).mean() > 0.01
        changed += difference
    assert changed[:12].max() == changed[-20:].max() == 0


def test_every_manipulation_leaves_two_traces_or_more() -> None:
    found = [clips.traces(seed) for seed in range(200)]
    for left in found:
        strengths = [getattr(left, name) for name in clips.TRACES]
        assert sum(s > 0 for s in strengths[:4]) >= 2
        assert all(s == 0 or 0.5 <= s <= 1 for s in strengths)
    for name in clips.TRACES:
        assert 0.2 < np.mean([getattr(left, name) > 0 for left in found]) < 0.9


def test_blinking_and_talking_change_eyes_and_mouth_only() -> None:
    rng = np.random.default_rng(1)
    person, around = faces.face(rng), faces.scenery(rng)
    background, still = faces.backdrop(around, 128), faces.Pose(64, 60, 32)
    for moved, (low, high) in {
        faces.Pose(64, 60, 32, blink=1.0): (-0.45, 0.15),
        faces.Pose(64, 60, 32, mouth=1.0): (0.35, 0.9),
    }.items():
        before, after = (
            faces.draw(person, still, around, background),
            faces.draw(person, moved, around, background),
        )
        difference = np.abs(before.pixels - after.pixels).max(2)
        inside = (before.v > low) & (before.v < high)
        assert difference[inside].max() > 0.2
        assert difference[~inside].max() < 0.01


def test_clips_decode_to_the_frames_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    clips.write_clip(path, 3, True, seconds=0.6, fps=10, size=144)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 10
    pictures = decoded(path.read_bytes())
    assert len(pictures) == 6
    assert pictures[0].shape == (144, 144, 3)
    drawn = next(clips.frames(3, True, 1, 10.0, 144))
    assert np.abs(pictures[0].astype(int) - drawn).mean() < 8


def test_a_clip_is_the_same_file_each_time() -> None:
    assert clips.clip_bytes(9, False, 0.3, 10, 128) == clips.clip_bytes(9, False, 0.3, 10, 128)


@pytest.mark.parametrize(
    ("seconds", "size", "limit"), [(1.0, 129, "even"), (1.0, 126, "128"), (0.0, 128, "no frame")]
)
def test_clips_that_cannot_be_are_refused(seconds: float, size: int, limit: str) -> None:
    with pytest.raises(ValueError, match=limit):
        clips.clip_bytes(0, False, seconds, 10, size)


def test_samples_are_held_out_and_say_what_they_show(tmp_path: Path) -> None:
    shown = sample.write_sample("classify", tmp_path / "a.png", seed=4)
    pixels, scene = shapes.draw(shapes.HELD_OUT + 4, sample.PICTURE_SIDE)
    assert shown == scene.caption
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)

    assert sample.write_sample("deepfake", tmp_path / "a.mp4", manipulated=False) == "a real clip"
    assert len(decoded((tmp_path / "a.mp4").read_bytes())) == 30

    shown = sample.write_sample("segment", tmp_path / "c.png")
    assert shown.count(",") == 2
    assert " and " in shown
    prompt = sample.write_sample("generate", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == prompt + "\n"

    assert sample.write_sample("video", tmp_path / "b.mp4", seed=6) == "a shape that grows"
    assert len(decoded((tmp_path / "b.mp4").read_bytes())) == 30


def test_samples_of_unknown_tasks_and_negative_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(sample.UnknownTask, match="classify, deepfake, generate"):
        sample.write_sample("sing", tmp_path / "a.wav")
    with pytest.raises(ValueError, match="-1"):
        sample.write_sample("classify", tmp_path / "a.png", seed=-1)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.25]))
def test_less_variety_keeps_what_a_caption_says(seed: int, variety: float) -> None:
    for objects in (1, 2):
        _, varied = shapes.draw(seed, 32, objects)
        _, calm = shapes.draw(seed, 32, objects, variety)
        assert calm.caption == varied.caption
    _, alone = shapes.draw(seed, 64, 1, 0.0)
    assert alone.objects[0].centre == (32.0, 32.0)
