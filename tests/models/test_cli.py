"""`python -m models`: what a person types, and the one line that says what is wrong."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from models import registry
from models.architecture import Source
from models.cli import app
from models.papers import BEGIN, END, PAPERS, inserted, table
from models.registry import architectures
from models.repository import cards
from models.shipped import SHIPPED
from models.weights import conversion
from service.triton.cards import Task
from tests.models.file_server import FileServer, file_server
from tests.models.tiny import Tiny, TinyPair, official_state, saved

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        server.put("/lab/tiny/resolve/main/tiny.pth", saved({"model": official_state()}))
        yield server


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory that the environment names, and two papers of our own."""
    monkeypatch.setenv("VITRINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    tiny, pair = Tiny(), TinyPair()
    source = (Source("hf://lab/tiny/tiny.pth"),)
    small = replace(tiny.variants["small"], sources=source)
    only = replace(pair.variants["only"], sources=source)
    monkeypatch.setattr(tiny, "variants", {**tiny.variants, "small": small}, raising=False)
    monkeypatch.setattr(pair, "variants", {"only": only}, raising=False)
    for each in (tiny, pair):
        monkeypatch.setitem(registry._ARCHITECTURES, each.slug, each)
    monkeypatch.setattr(conversion, "architectures", lambda: {"tiny": tiny})
    return tmp_path / "data"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pth"
    path.write_bytes(saved(official_state(classes=5)))
    return path


def run(*arguments: object, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=answer)


def refusal(*arguments: object) -> str:
    """Return the only line that a refused command says."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    *_, line = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_pull_shows_the_licence_and_says_what_is_served(server: FileServer, data: Path) -> None:
    result = run("pull", "tiny:small", "--hub-url", server.url)
    assert result.exit_code == 0, result.output
    assert "weights under MIT (any use)" in result.stderr
    assert "tiny:small is served as tiny-small (classification" in result.stdout
    (card,) = cards(data / "repository")
    assert f"SHA-256 {card.weights.sha256}" in result.stdout
    again = run("pull", "tiny:small", "--hub-url", server.url)
    assert "is there already" in again.stdout


def test_pull_from_the_hub_that_the_environment_names(
    server: FileServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    other = data.parent / "other"
    assert run("pull", "tiny:small", "--repository", other).exit_code == 0
    assert [card.id for card in cards(other)] == ["tiny-small"]
    assert not data.exists()


def test_pull_asks_for_agreement_only_where_somebody_can_answer(
    server: FileServer, data: Path
) -> None:
    said = refusal("pull", "tiny-pair", "--hub-url", server.url)
    assert "CC-BY-NC-4.0" in said
    assert "--accept-licence" in said
    assert server.requests == []


@pytest.mark.parametrize(("answer", "said"), [("n", "--accept-licence"), ("y", "does not exist")])
def test_a_person_is_asked_about_the_licence(
    server: FileServer, tmp_path: Path, answer: str, said: str
) -> None:
    person, terminal = pty.openpty()
    command = [sys.executable, "-m", "models", "pull", "genconvit:ed", "--hub-url", server.url]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=terminal, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(person, f"{answer}\n".encode())
        _, shown = process.communicate()
    os.close(person)
    os.close(terminal)
    assert "Is your use non-commercial?" in shown
    assert said in shown.splitlines()[-1]
    assert bool(server.requests) == (answer == "y")


def test_pull_of_what_is_not_published(server: FileServer) -> None:
    assert "no weights of tiny:big are published" in refusal("pull", "tiny:big")
    assert "'tinny'" in refusal("pull", "tinny")
    server.files.clear()
    said = refusal("pull", "tiny:small", "--hub-url", server.url)
    assert said.endswith("/lab/tiny/resolve/main/tiny.pth does not exist (404 Not Found)")


def test_add_list_and_remove(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(["a", "b", "c", "d", "e"]))
    result = run(
        "add",
        "mine",
        "--architecture=tiny",
        f"--checkpoint={checkpoint}",
        f"--labels={tmp_path / 'labels.json'}",
        "--storage=bfloat16",
        "--default",
    )
    assert result.exit_code == 0, result.output
    assert "tiny:small is served as mine (classification, the default for" in result.stdout
    assert "warning: taken as tiny:small" in result.stderr
    (card,) = cards(data / "repository")
    assert (card.labels, card.default) == (("a", "b", "c", "d", "e"), True)
    assert run("remove", "mine").stdout == "removed mine\n"
    assert cards(data / "repository") == []
    assert refusal("remove", "mine") == "error: no model 'mine' in the repository"


def test_add_refuses_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    command = ("add", "mine", f"--checkpoint={checkpoint}", "--architecture")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert "5 classes, the labels file has 2 names" in refusal(
        *command, "tiny:small", "--labels", tmp_path / "labels.txt"
    )
    assert "does not fit tiny:big" in refusal(*command, "tiny:big")
    assert "no variant 'huge'" in refusal(*command, "tiny:huge")
    assert "say NAME=FILE" in refusal(*command, "tiny:small", "--part", "vae.safetensors")
    assert "cannot be a model's name" in refusal("add", "Mine", *command[2:], "tiny:small")
    checkpoint.unlink()
    assert "No such file" in refusal(*command, "tiny:small")


def test_list_names_what_pull_and_add_take() -> None:
    listed = json.loads(run("list", "--json").stdout)
    assert [entry["slug"] for entry in listed] == list(architectures())
    tiny = next(entry for entry in listed if entry["slug"] == "tiny")
    assert tiny["variants"][1] == {
        "name": "small",
        "demo": False,
        "default": False,
        "licence": {"code": "MIT", "weights": "MIT", "commercial": True},
        "labels": 3,
        "sources": ["hf://lab/tiny/tiny.pth"],
    }
    shown = run("list").stdout
    assert "tiny:small-many" in shown
    assert "CC-BY-NC-4.0, non-commercial" in shown


def test_repository_writes_what_ships(data: Path) -> None:
    result = run("repository", "--device=cpu", "--models=mtcnn", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["id"], row["task"]) == ("mtcnn", Task.FACE_DETECTION)
    assert {card.id for card in cards(data / "repository")} == set(SHIPPED)
    assert "mtcnn" in run("repository", "--device=cpu").stdout
    assert "no model 'nope'" in refusal("repository", "--device=cpu", "--models=nope")


def test_samples(tmp_path: Path) -> None:
    result = run("sample", "generate", "-o", tmp_path / "prompt.txt", "--seed=3")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith((tmp_path / "prompt.txt").read_text())
    assert run("sample", "classify", "-o", tmp_path / "shape.png").exit_code == 0
    assert (tmp_path / "shape.png").read_bytes().startswith(b"\x89PNG")
    said = refusal("sample", "generate", "-o", tmp_path / "absent" / "prompt.txt")
    assert said == f"error: {tmp_path / 'absent' / 'prompt.txt'}: No such file or directory"


def test_settings_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_PORT", "eighty")
    assert "VITRINE_PORT: Input should be a valid integer" in refusal("remove", "mine")


def test_a_recipe_that_does_not_exist() -> None:
    assert "no recipe for 'nope'" in refusal("train-demo", "nope")


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["add", "--help"]])
def test_help_teaches_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom models.cli import app\n"
        f"result = CliRunner().invoke(app, {arguments})\n"
        "print(result.output)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Usage" in done.stdout


def test_every_command_shows_an_example() -> None:
    for name in ("pull", "add", "remove", "list", "repository", "train-demo", "sample", "papers"):
        text = run(name, "--help").output
        assert f"vitrine {name} " in text or f"python -m models {name}" in text


def test_the_module_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "models", "sample", "generate", "-o", "nowhere/prompt.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: nowhere/prompt.txt: No such file or directory\n"


def test_the_52_papers() -> None:
    assert len({row.slug for row in PAPERS}) == 52
    rows = [line for line in table().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 52
    served = {row.split("`")[1] for row in rows if "| served |" in row}
    known = {a.paper.slug for a in architectures().values()}
    assert served == known & {row.slug for row in PAPERS}
    assert served >= {"convnext", "genconvit", "micro-dit"}
    assert run("papers").stdout == table()


def test_the_table_goes_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert run("papers", "--write", document).exit_code == 0
    assert document.read_text() == f"before\n{BEGIN}\n\n{table()}\n{END}\nafter\n"
    assert inserted(document.read_text()) == document.read_text()
    document.write_text("no markers")
    assert "no <!-- papers -->" in refusal("papers", "--write", document)
    assert document.read_text() == "no markers"


def test_the_readme_tells_the_truth() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert inserted(readme) == readme, "run `python -m models papers --write README.md`"
