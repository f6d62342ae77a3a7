"""The main job over HTTP against `vitrine up`: a photo, a video and a prompt go in, right answers come out."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import httpx2
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from models.demo import shapes
from models.demo.clips import clip_bytes, frames
from tests.e2e.service import Service

pytestmark = pytest.mark.slow

COUNT = 360
CLIPS = 50
PROMPTS = 200


def png(pixels: np.ndarray) -> bytes:
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


def test_held_out_shapes_are_named(service: Service) -> None:
    """Shapes top-1 >= 97 %."""

    def right(seed: int) -> bool:
        pixels, scene = shapes.draw(shapes.HELD_OUT + seed)
        answer = service.post("/v1/classify", png(pixels), "image/png")
        assert answer["weights"] == "demo"
        assert "procedural" in answer["warning"]
        return (
            answer["predictions"][0]["label"]
            == f"{scene.objects[0].colour} {scene.objects[0].shape}"
        )

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(right, range(COUNT)))
    assert np.mean(found) >= 0.97


def test_held_out_clips_are_told_apart(service: Service) -> None:
    """Deepfake AUC >= 0.95 on clips."""

    def score(number: int) -> tuple[bool, float, str]:
        manipulated = number % 2 == 1
        body = clip_bytes(shapes.HELD_OUT + 500 + number, manipulated=manipulated)
        answer = service.post("/v1/deepfake", body, "video/mp4")
        assert answer["sampling"]["frames_decoded"] == 15
        assert len(answer["models"]) == 2
        assert [m["frame"] for m in answer["timeline"]] == sorted(
            m["frame"] for m in answer["timeline"]
        )
        return manipulated, answer["score"], answer["verdict"]

    with ThreadPoolExecutor(2) as pool:
        scored = list(pool.map(score, range(CLIPS)))
    assert roc_auc_score([m for m, _, _ in scored], [s for _, s, _ in scored]) >= 0.95
    assert {v for _, _, v in scored} == {"real", "fake"}


def test_a_video_without_a_face_is_not_judged(service: Service, tmp_path: Path) -> None:
    clip = tmp_path / "nobody.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for shade in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 100 + shade, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    answer = service.post("/v1/deepfake", clip.read_bytes(), "video/mp4")
    assert answer["verdict"] == "not_applicable"
    assert answer["score"] is None
    assert answer["quality"] == ["no_face"]
    assert answer["faces"] == answer["segments"] == []


def test_a_picture_of_a_face_is_judged(service: Service) -> None:
    pixels = next(iter(frames(shapes.HELD_OUT + 3, manipulated=False, count=1)))
    answer = service.post("/v1/deepfake", png(pixels), "image/png")
    assert answer["verdict"] in ("real", "fake")
    assert answer["sampling"]["method"] == "single"
    assert len(answer["timeline"]) == 1


def test_pictures_show_what_their_prompts_say(service: Service) -> None:
    """Of pictures made from 200 prompts the demo classifier finds shape and colour in >= 80 %."""
    stream = np.random.default_rng(1)
    wanted = [shapes.LABELS[i] for i in stream.integers(0, len(shapes.LABELS), PROMPTS)]

    def found(number: int) -> bool:
        label = wanted[number]
        job = service.generate(f"{shapes.article(label)} {label}", seed=1000 + number)
        assert job["state"] == "succeeded", job
        picture = service.result(job["id"])
        answer = service.post("/v1/classify?top_k=1", picture, "image/png")
        return answer["predictions"][0]["label"] == label

    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(found, range(PROMPTS)))
    assert np.mean(right) >= 0.80


def test_the_same_seed_gives_the_same_picture(service: Service) -> None:
    def pixels(seed: int) -> np.ndarray:
        job = service.generate("a blue star", seed=seed, steps=6)
        assert job["result"]["document"]["seed"] == seed
        return np.asarray(Image.open(io.BytesIO(service.result(job["id"]))), dtype=int)

    first, again, other = pixels(0), pixels(0), pixels(1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1


def test_several_pictures_of_one_job(service: Service) -> None:
    job = service.generate("a green cross", n=3, seed=5, steps=4)
    files = job["result"]["files"]
    assert [f["name"] for f in files] == ["image-0.png", "image-1.png", "image-2.png"]
    assert [i["seed"] for i in job["result"]["document"]["images"]] == [5, 6, 7]
    for file in files:
        body = service.client.get(file["url"]).raise_for_status().content
        assert Image.open(io.BytesIO(body)).size == (64, 64)


def test_every_task_runs_as_a_job(service: Service) -> None:
    pixels, _ = shapes.draw(shapes.HELD_OUT + 1)
    now = service.post("/v1/classify", png(pixels), "image/png")
    accepted = service.client.post(
        "/v1/classify?mode=async", content=png(pixels), headers={"Content-Type": "image/png"}
    )
    assert accepted.status_code == 202
    job = service.finished(accepted.json()["id"])
    assert job["result"]["document"]["predictions"] == now["predictions"]


def test_events_tell_progress_and_resume(service: Service) -> None:
    accepted = service.client.post(
        "/v1/generate/image", json={"prompt": "a red circle", "steps": 8, "seed": 1}
    ).json()
    events = service.events(accepted["id"])
    kinds = [e["event"] for e in events]
    assert kinds.count("progress") >= 1
    last = events[-1]["data"]
    assert last["state"] == "succeeded"
    percents = [e["data"]["percent"] for e in events if e["event"] == "progress"]
    assert percents == sorted(percents)
    resumed = service.events(accepted["id"], after=events[1]["id"])
    assert [e["id"] for e in resumed] == [e["id"] for e in events[2:]]


def test_cancelling_a_running_job_stops_it(service: Service) -> None:
    accepted = service.client.post(
        "/v1/generate/image", json={"prompt": "a red circle", "steps": 100, "n": 8}
    ).json()
    for event in service.follow(accepted["id"]):
        if event["event"] == "progress":
            break
    service.client.delete(f"/v1/jobs/{accepted['id']}").raise_for_status()
    job = service.finished(accepted["id"])
    assert job["state"] == "canceled"
    refused = service.client.get(f"/v1/jobs/{accepted['id']}/result")
    assert (refused.status_code, refused.json()["code"]) == (409, "result_not_ready")


def test_an_idempotency_key_makes_one_job(service: Service) -> None:
    def send(prompt: str) -> httpx2.Response:
        return service.client.post(
            "/v1/generate/image",
            json={"prompt": prompt, "steps": 2, "seed": 3},
            headers={"Idempotency-Key": "once"},
        )

    first, again, other = send("a red cross"), send("a red cross"), send("a blue cross")
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_prefer_wait_answers_inline(service: Service) -> None:
    answer = service.client.post(
        "/v1/generate/image",
        json={"prompt": "a red circle", "steps": 2},
        headers={"Prefer": "wait=60", "Accept": "image/png"},
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
