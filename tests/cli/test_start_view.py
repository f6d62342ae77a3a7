import io

import pytest
from rich.console import Console

from service.cli.start_view import LiveTable, PlainLines, models_table, ready_panel, view
from service.supervisor.stack import ModelRow, Progress

ROWS = [
    ModelRow("convnext-demo", "classification", "demo", "cpu", "ready"),
    ModelRow("mtcnn", "face-detection", "official", "", "loading"),
]


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def text(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.fixture(autouse=True)
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_gets_a_table_that_is_cleared_at_the_end() -> None:
    screen = console(terminal=True)
    table = view(screen)
    assert isinstance(table, LiveTable)
    table.show(Progress({"redis": "ready", "triton": "starting"}, ROWS))
    table.close()
    assert "● redis   ○ triton" in text(screen)
    assert "2/4" in text(screen)
    assert text(screen).endswith("\x1b[?25h")  # the cursor is back


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view(console(terminal=True)), PlainLines)


def test_a_pipe_gets_a_line_for_every_change() -> None:
    screen = console(terminal=False)
    lines = view(screen)
    assert isinstance(lines, PlainLines)
    row = ModelRow("mtcnn", "face-detection", "official", "", "loading")
    lines.show(Progress({"redis": "starting"}, [row]))
    lines.show(Progress({"redis": "starting"}, [row]))
    row.state, row.reason = "failed", "no [memory]"
    lines.show(Progress({"redis": "ready", "gateway": "the model mtcnn is loading"}, [row]))
    lines.close()
    assert [line[10:] for line in text(screen).splitlines()] == [
        "redis: starting",
        "model mtcnn: loading (face-detection, official)",
        "redis: ready",
        "gateway: starting",
        "model mtcnn: failed (face-detection, official): no [memory]",
    ]


def test_the_table_names_model_task_weights_device_and_state() -> None:
    screen = console(terminal=False)
    screen.print(models_table(ROWS))
    heading, first, second = text(screen).splitlines()
    assert heading.split() == ["MODEL", "TASK", "WEIGHTS", "DEVICE", "STATE"]
    assert first.split() == ["convnext-demo", "classification", "demo", "cpu", "ready"]
    assert second.split()[:4] == ["mtcnn", "face-detection", "official", "-"]


def test_the_panel_says_where_and_how_and_warns_of_demo_weights() -> None:
    screen = console(terminal=False)
    screen.print(
        ready_panel("http://127.0.0.1:9000", 21.3, ROWS, "/data/logs", "export VITRINE_URL=x")
    )
    for part in (
        "ready after 21 s at http://127.0.0.1:9000",
        "http://127.0.0.1:9000/docs",
        "export VITRINE_URL=x",
        "vitrine generate image",
        "--data-binary @out.png 127.0.0.1:9000/v1/classify",
        "Demo weights know drawn shapes",
        "Logs: /data/logs",
    ):
        assert part in text(screen)
