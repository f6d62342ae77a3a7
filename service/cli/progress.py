"""Following a job on the terminal: a progress bar, and cancelling by Ctrl-C."""

from __future__ import annotations

from typing import Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from service.cli.output import fail, messages
from service.client import Client

INTERRUPTED = 130


def bar() -> Progress:
    """Return a progress display on standard error, which a pipe does not see."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(30),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
        console=messages,
        transient=True,
        disable=not messages.is_terminal,
    )


def finished(client: Client, job_id: str, cancel: bool = True) -> dict[str, Any]:
    """Show the job's progress until it ends and return it, succeeded.

    A job that ends otherwise ends the command with its reason. Ctrl-C cancels the job, or with
    `cancel=False` only stops watching.
    """
    job: dict[str, Any] = {}
    try:
        with bar() as display:
            shown = display.add_task("waiting", total=100.0, step="")
            for job in client.follow(job_id):
                progress = job["progress"]
                steps = f"{progress['step']}/{progress['steps']}" if progress["steps"] else ""
                display.update(
                    shown,
                    description=_stage(job),
                    completed=progress["percent"],
                    step=steps,
                )
    except KeyboardInterrupt:
        if cancel:
            client.cancel(job_id)
            messages.print(f"Canceled job {job_id}.")
        else:
            messages.print(f"Job {job_id} goes on.")
        raise typer.Exit(INTERRUPTED) from None
    if job["state"] != "succeeded":
        error = job.get("error") or {}
        reason = error.get("message", f"The job is {job['state']}.")
        fail(f"{reason} [{error.get('code', job['state'])}]")
    return job


def _stage(job: dict[str, Any]) -> str:
    if job["state"] == "queued":
        position = job.get("queue_position")
        return f"queued (number {position})" if position else "queued"
    return str(job["progress"].get("stage") or job["state"])
