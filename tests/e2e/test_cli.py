"""The commands for people, each as a process of its own against the running service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.demo import clips, shapes
from tests.cli.running import VITRINE, run_vitrine
from tests.e2e.service import Service

pytestmark = pytest.mark.slow


@pytest.fixture
def vitrine(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in a folder of its own; it finds the service by `up.json`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = run_vitrine(*arguments, VITRINE_DATA_DIR=str(service.data_dir))
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def draw(path: Path, seed: int) -> str:
    pixels, scene = shapes.draw(shapes.HELD_OUT + seed, 128)
    Image.fromarray(pixels).save(path)
    return f"{scene.objects[0].colour} {scene.objects[0].shape}"


def test_classify_shows_labels_and_keeps_the_order_of_files(vitrine, tmp_path: Path) -> None:
    labels = [draw(tmp_path / f"{n}.png", n) for n in range(5)]
    names = [f"{n}.png" for n in range(5)]
    answers = json.loads(vitrine("classify", *names, "--top-k", "2", "--json").stdout)
    assert [a["file"] for a in answers] == names
    found = [a["predictions"][0]["label"] for a in answers]
    assert sum(map(str.__eq__, found, labels)) >= 4
    assert {len(a["predictions"]) for a in answers} == {2}

    shown = vitrine("classify", "0.png")
    assert answers[0]["predictions"][0]["label"] in shown.stdout
    assert "█" in shown.stdout
    assert "%" in shown.stdout
    assert "demo weights" in shown.stderr


def test_classify_reports_a_bad_file_and_goes_on(vitrine, tmp_path: Path) -> None:
    draw(tmp_path / "good.png", 0)
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    done = vitrine("classify", "bad.png", "good.png", status=1)
    assert "good.png" in done.stdout
    assert done.stderr.startswith("bad.png: ")
    assert "[corrupt_image]" in done.stderr
    answers = json.loads(vitrine("classify", "bad.png", "good.png", "--json", status=1).stdout)
    assert answers[0]["error"]["code"] == "corrupt_image"
    assert answers[1]["predictions"]


def test_errors_are_one_line_with_the_code(vitrine, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 0)
    for arguments, code in (
        (("models", "show", "nobody"), "model_not_found"),
        (("jobs", "show", "job_unknown"), "job_not_found"),
        (("generate", "image", "x", "--steps", "100000"), "invalid_parameter"),
        (("deepfake", "a.png", "--model", "nobody"), "model_not_found"),
    ):
        done = vitrine(*arguments, status=1)
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith(f"[{code}]\n")
        assert done.stderr.count("\n") == 1


def test_deepfake_shows_the_verdict_and_writes_reports(vitrine, tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "clip.mp4", clips.HELD_OUT + 3, True)
    answer = json.loads(vitrine("deepfake", "clip.mp4", "--frames", "6", "--json").stdout)
    assert len(answer["timeline"]) == 6
    shown = vitrine("deepfake", "clip.mp4", "--frames", "6", "--report", "clip.html")
    assert {"fake": "FAKE", "real": "REAL"}[answer["verdict"]] in shown.stdout
    assert f"score {answer['score']:.2f}" in shown.stdout
    assert "clip.html" in shown.stdout
    html = (tmp_path / "clip.html").read_text()
    assert html.count("data:image/jpeg;base64,") == sum(len(m["faces"]) for m in answer["timeline"])
    assert "<svg" in html
    assert "http" not in html.replace("http-equiv", "")
    vitrine("deepfake", "clip.mp4", "--frames", "6", "--report", "clip.png")
    with Image.open(tmp_path / "clip.png") as picture:
        assert picture.size == (1200, 675)
    jobs = json.loads(vitrine("jobs", "--task", "deepfake", "--json").stdout)["data"]
    assert len(jobs) >= 3


def test_a_picture_without_a_face_has_no_verdict(vitrine, tmp_path: Path) -> None:
    draw(tmp_path / "shape.png", 0)
    shown = vitrine("deepfake", "shape.png", "--report", "shape.html")
    assert "NO VERDICT" in shown.stdout
    assert "No face was found" in shown.stderr
    assert "No face was found" in (tmp_path / "shape.html").read_text()


def test_generate_writes_the_same_picture_for_the_same_seed(vitrine, tmp_path: Path) -> None:
    prompt = ("generate", "image", "a red circle", "--steps", "4", "--seed", "7")
    vitrine(*prompt, "-o", "a.png")
    job = json.loads(vitrine(*prompt, "-o", "b.png", "--json").stdout)
    assert job["state"] == "succeeded"
    assert job["written"] == ["b.png"]
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.tobytes() == b.tobytes()
    several = vitrine(*prompt, "-n", "2", "-o", "c.webp")
    assert several.stdout.startswith("c-1.webp\nc-2.webp\n")
    with Image.open(tmp_path / "c-2.webp") as picture:
        assert picture.format == "WEBP"


def test_a_job_can_be_left_and_come_back_to(vitrine, tmp_path: Path) -> None:
    prompt = ("generate", "image", "a blue star", "--steps", "4", "--no-wait")
    job = json.loads(vitrine(*prompt, "--json").stdout)
    assert job["state"] in ("queued", "running", "succeeded")
    assert "succeeded" in vitrine("jobs", "watch", job["id"]).stdout
    assert job["id"] in vitrine("jobs", "--state", "succeeded").stdout
    assert "image/png" in vitrine("jobs", "show", job["id"]).stdout
    vitrine("jobs", "result", job["id"], "-o", "star.png")
    with Image.open(tmp_path / "star.png") as picture:
        assert picture.format == "PNG"
    document = json.loads(vitrine("jobs", "result", job["id"], "--json").stdout)
    assert document["files"][0]["content_type"] == "image/png"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Where the tests run in the background SIGINT is ignored, and children would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_cancels_the_job(vitrine, service: Service, tmp_path: Path) -> None:
    worker = service.process("service.jobs.worker")
    worker.suspend()  # the job must not be done before it is canceled
    try:
        process = subprocess.Popen(
            [*VITRINE, "generate", "image", "a red circle", "--json"],
            env=os.environ | {"VITRINE_DATA_DIR": str(service.data_dir), "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        queued: list[dict[str, Any]] = []
        while not queued:
            assert process.poll() is None
            queued = service.client.get("/v1/jobs", params={"state": "queued"}).json()["data"]
        shown = vitrine("jobs", "--state", "queued").stdout
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        worker.resume()
    job_id = queued[0]["id"]
    assert job_id in shown
    assert "number 1" in shown
    assert (process.returncode, output) == (130, "")
    assert errors == f"Canceled job {job_id}.\n"
    assert service.finished(job_id)["state"] == "canceled"
    assert not (tmp_path / "out.png").exists()
    refused = vitrine("jobs", "result", job_id, status=1)
    assert "[result_not_ready]" in refused.stderr
    assert "is canceled" in vitrine("jobs", "cancel", job_id).stdout


def test_models_are_listed_with_licences_and_can_be_unloaded(vitrine) -> None:
    listed = vitrine("models").stdout
    assert "mtcnn" in listed
    assert "convnext-demo" in listed
    ids = {m["id"] for m in json.loads(vitrine("models", "--json").stdout)["data"]}
    assert {"convnext-demo", "genconvit-demo", "micro-dit-demo", "mtcnn"} <= ids
    only = json.loads(vitrine("models", "--task", "classification", "--json").stdout)["data"]
    assert "convnext-demo" in {m["id"] for m in only} < ids
    assert {m["task"] for m in only} == {"classification"}
    card = vitrine("models", "show", "convnext-demo").stdout
    assert "A ConvNet for the 2020s" in card
    assert "demo" in card
    assert vitrine("models", "unload", "convnext-demo").stdout == "convnext-demo is unloaded.\n"
    assert vitrine("models", "load", "convnext-demo").stdout == "convnext-demo is ready.\n"


def test_sample_is_passed_on_and_its_picture_is_classified(vitrine, tmp_path: Path) -> None:
    vitrine("sample", "classify", "-o", "sample.png")
    assert "█" in vitrine("classify", "sample.png").stdout


def test_doctor_sees_the_running_service(vitrine, service: Service) -> None:
    port = service.url.rsplit(":", 1)[1]
    found = json.loads(vitrine("doctor", "--port", port, "--json").stdout)
    by_name = {f["name"]: f for f in found}
    assert "vitrine runs there" in by_name["port"]["found"]
    assert "convnext-demo" in by_name["model repository"]["found"]
    assert by_name["tritonserver"]["status"] == "ok"
