"""Commands without a service, and what they draw."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from models.demo import clips
from service.cli.main import app
from service.cli.report import write_report
from service.cli.timeline import chart, clock
from service.client.client import media_type
from service.supervisor import ports
from tests.cli.running import run_vitrine

COMMANDS = (
    *(
        (name,)
        for name in (
            "up",
            "doctor",
            "classify",
            "deepfake",
            "detect",
            "embed",
            "explain",
            "reconstruct",
            "segment",
            "upscale",
            "generate",
            "jobs",
            "models",
        )
    ),
    *(("keys", name) for name in ("create", "list", "revoke")),
    ("generate", "image"),
    *(("jobs", name) for name in ("show", "watch", "cancel", "result")),
    *(("models", name) for name in ("show", "load", "unload")),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    if len(command) == 1 and command[0] != "generate":
        assert "Examples:" in shown.output


def test_help_needs_no_heavy_imports() -> None:
    source = (
        "import sys; from service.cli.main import app\n"
        "print([m for m in ('torch', 'av', 'matplotlib', 'tritonclient', 'redis') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "command",
    [
        ("jobs",),
        ("jobs", "watch", "x"),
        ("models",),
        ("classify", "{file}"),
        ("deepfake", "{file}"),
        ("generate", "image", "x"),
    ],
    ids=" ".join,
)
def test_without_a_service_it_says_how_to_start_one(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    url = f"http://127.0.0.1:{ports.free_ports(1)[0]}"
    arguments = [word.format(file=picture) for word in command]
    done = run_vitrine(*arguments, VITRINE_URL=url, VITRINE_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"error: No service answers at {url}. Start it with: vitrine up (or name another with --url).\n"
    )


def test_the_note_of_a_running_service_gives_the_address(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{ports.free_ports(1)[0]}"
    (tmp_path / "up.json").write_text(json.dumps({"url": url}))
    done = run_vitrine("jobs", VITRINE_DATA_DIR=str(tmp_path))
    assert f"No service answers at {url}." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "image", "x", "-o", "x.gif"), "must end in .png, .webp, .jpg, .jpeg"),
        (("generate", "image", "x", "--size", "big"), "give pixels as 512 or 512x384"),
        (("deepfake", __file__, "--report", "x.pdf"), "must end in .html or .png"),
        (("classify", "nowhere.png"), "does not exist"),
    ],
    ids=["format", "size", "report", "file"],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    arguments: tuple[str, ...], message: str
) -> None:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_delegated_commands_show_the_other_side() -> None:
    done = run_vitrine("add", "--help")
    assert done.returncode == 0
    assert "Usage: vitrine add" in done.stdout
    assert "--checkpoint" in done.stdout
    done = run_vitrine("sample", "nothing", "-o", "x")
    assert done.returncode != 0


def test_doctor_gives_a_verdict_on_every_point(tmp_path: Path) -> None:
    arguments = ("doctor", "--data-dir", str(tmp_path / "data"))
    free = str(ports.free_ports(1)[0])
    found = json.loads(run_vitrine(*arguments, "--port", free, "--json").stdout)
    names = [finding["name"] for finding in found]
    assert names[0] == "Python"
    assert {"CPU", "GPU", "memory", "shared memory", "tritonserver", "redis-server"} <= set(names)
    status = {finding["name"]: finding["status"] for finding in found}
    assert status["tritonserver"] == "ok"
    assert status["redis-server"] == "ok"
    assert status["port"] == "ok"
    assert not (tmp_path / "data").exists()


def test_doctor_fails_on_a_broken_repository_and_an_address_of_another_machine(
    tmp_path: Path,
) -> None:
    entry = tmp_path / "repository" / "mine"
    entry.mkdir(parents=True)
    (entry / "config.pbtxt").write_text('name: "yours"')
    done = run_vitrine("doctor", "--data-dir", str(tmp_path), VITRINE_HOST="192.0.2.1")
    assert done.returncode == 1
    assert "mine: its configuration is that of 'yours'" in done.stdout
    assert "192.0.2.1 is no address of this machine" in done.stdout
    assert done.stdout.count("FAIL") >= 2


def test_doctor_asks_a_triton_elsewhere() -> None:
    done = run_vitrine("doctor", "--json", VITRINE_TRITON__URL="127.0.0.1:1")
    assert done.returncode == 1
    (triton,) = [f for f in json.loads(done.stdout) if f["name"] == "tritonserver"]
    assert triton["status"] == "fail"
    assert "unset VITRINE_TRITON__URL" in triton["advice"]


def moment(t: float, score: float | None, frame: int = 0) -> dict[str, Any]:
    faces = [] if score is None else [{"track_id": 0, "box": [10, 10, 60, 70], "score": score}]
    return {"t": t, "frame": frame, "score": score, "faces": faces}


def test_the_chart_shows_height_threshold_gaps_and_times() -> None:
    timeline = [moment(0.0, 1.0), moment(1.0, None), moment(2.0, 0.25)]
    lines = chart(timeline, 0.5, width=12, height=4).plain.splitlines()
    assert lines == [
        " 1.0 ███         ",
        " 0.5 ███┈┈┈┈┈┈┈┈┈",
        "     ███         ",
        " 0.0 ███      ███",
        "     0:00.0 0:02.0",
    ]
    red = chart(timeline, 0.5, width=12, height=4)
    assert {str(span.style) for span in red.spans} == {"dim", "red", "green"}


def test_the_chart_of_one_moment_is_a_bar() -> None:
    assert "████████" in chart([moment(0.0, 1.0)], 0.5).plain


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (59.96, "1:00.0"), (62.5, "1:02.5"), (3600, "60:00.0")]
)
def test_times_are_minutes_and_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.fixture
def answer(tmp_path: Path) -> dict[str, Any]:
    clips.write_clip(tmp_path / "<clip>.mp4", 0, True, seconds=1.0)
    return {
        "verdict": "fake",
        "score": 0.75,
        "threshold": 0.5,
        "model": "genconvit-demo",
        "weights": "demo",
        "warning": "Demo weights.",
        "models": [{"name": "ed", "score": 0.7}, {"name": "vae", "score": 0.8}],
        "timeline": [moment(0.0, 0.9, 0), moment(0.4, None, 3), moment(0.9, 0.6, 6)],
        "segments": [{"start_s": 0.0, "end_s": 0.9, "score": 0.75}],
        "quality": ["too_short"],
        "sampling": {
            "frames_decoded": 3,
            "width": 256,
            "height": 256,
            "duration_s": 1.0,
            "fps": 25.0,
        },
    }


def test_the_html_report_stands_alone_and_escapes_names(tmp_path: Path, answer) -> None:
    write_report(tmp_path / "report.html", tmp_path / "<clip>.mp4", answer)
    html = (tmp_path / "report.html").read_text()
    assert "<clip>" not in html
    assert "&lt;clip&gt;.mp4" in html
    assert html.count("data:image/jpeg;base64,") == 2
    assert "no face" in html
    assert "shorter than a second" in html
    assert "Demo weights." in html
    assert 'src="http' not in html
    assert "{" not in html.split("</style>")[1]


def test_the_png_report_is_a_picture(tmp_path: Path, answer) -> None:
    write_report(tmp_path / "report.png", tmp_path / "<clip>.mp4", answer)
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1200, 675)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


def test_media_types_go_by_the_name() -> None:
    assert media_type("a.MP4") == "video/mp4"
    assert media_type("a.jpg") == "image/jpeg"
    assert media_type("a.unknown") == "application/octet-stream"
