"""`vitrine jobs`: what waits, runs and is done."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import ApiKey, Json, Target, Url
from service.cli.generate import write, write_files
from service.cli.output import console, fail, print_json, print_table
from service.cli.progress import finished

jobs = typer.Typer()

_COLOURS = {
    "queued": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "canceled": "dim",
    "expired": "dim",
}
_State = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]


@jobs.callback(invoke_without_command=True)
def list_jobs(
    context: typer.Context,
    state: Annotated[_State | None, typer.Option(help="Only jobs in this state.")] = None,
    task: Annotated[str | None, typer.Option(help="Only jobs of this task.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=100)] = 20,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the jobs, newest first; the commands below look at one.

    \b
    Examples:
      vitrine jobs
      vitrine jobs --state running
      vitrine jobs watch ID
      vitrine jobs result ID -o out.png
    """
    if context.invoked_subcommand is not None:
        context.obj = Target(url, api_key)
        return
    with Target(url, api_key).connected() as client:
        page = client.jobs({"state": state, "task": task, "limit": limit})
    if json:
        print_json(page)
        return
    if not page["data"]:
        console.print("No jobs.", style="dim")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    # An id that is cut short can be given to no other command.
    table.add_column("JOB", no_wrap=True, min_width=max(len(job["id"]) for job in page["data"]))
    for heading in ("TASK", "MODEL", "STATE", "PROGRESS", "AGE"):
        table.add_column(heading, no_wrap=True)
    for job in page["data"]:
        table.add_row(
            job["id"],
            job["task"],
            job["model"] or "-",
            Text(job["state"], style=_COLOURS.get(job["state"], "")),
            _progress(job),
            _age(job["created_at"]),
        )
    print_table(table)
    if page.get("has_more"):
        console.print(f"There are more; --limit shows up to 100 (now {limit}).", style="dim")


@jobs.command()
def show(
    context: typer.Context,
    job_id: JobId,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show one job."""
    with Target.of(context, url, api_key).connected() as client:
        job = client.job(job_id)
    _show(job, json)


@jobs.command()
def watch(
    context: typer.Context,
    job_id: JobId,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Follow a job until it ends. Ctrl-C stops watching; the job goes on."""
    with Target.of(context, url, api_key).connected() as client:
        job = finished(client, job_id, cancel=False)
    _show(job, json)


@jobs.command()
def cancel(
    context: typer.Context,
    job_id: JobId,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Cancel a job that waits or runs."""
    with Target.of(context, url, api_key).connected() as client:
        job = client.cancel(job_id)
    if json:
        print_json(job)
    elif job["state"] == "running":
        console.print(f"Job {job_id} is being canceled.")
    else:
        console.print(f"Job {job_id} is {job['state']}.")


@jobs.command()
def result(
    context: typer.Context,
    job_id: JobId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; several results are numbered."),
    ] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Fetch a job's result: its pictures or clips, or its JSON document."""
    with Target.of(context, url, api_key).connected() as client:
        job = client.job(job_id)
        if job["state"] != "succeeded":
            client.result(job_id)  # the service says why there is none
            fail(f"Job {job_id} is {job['state']}.")
        if output is not None and job["result"]["files"]:
            paths = write_files(client, job, output)
            if json:
                print_json(job | {"written": [str(path) for path in paths]})
            else:
                for path in paths:
                    console.print(f"[bold green]{path}[/]")
            return
        if job["result"]["files"] and not json:
            names = ", ".join(file["name"] for file in job["result"]["files"])
            fail(f"The result is {names}: name a file to write with -o.", status=2)
        content_type, data = client.result(job_id)
        document = data if content_type.startswith("application/json") else None
    if output is not None and document is not None:
        write(output, document)
        console.print(f"[bold green]{output}[/]")
    elif document is not None:
        sys.stdout.write(document.decode() + "\n")
    else:
        print_json(job["result"])


def _show(job: dict[str, Any], json: bool) -> None:
    if json:
        print_json(job)
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("job", Text(job["id"], style="bold"))
    table.add_row("state", Text(job["state"], style=_COLOURS.get(job["state"], "")))
    table.add_row("task", job["task"])
    table.add_row("model", job["model"] or "-")
    table.add_row("progress", _progress(job))
    table.add_row("created", f"{_age(job['created_at'])} ago")
    if job["started_at"] and job["finished_at"]:
        table.add_row("took", f"{job['finished_at'] - job['started_at']:.1f} s")
    if job["error"]:
        table.add_row("error", Text(f"{job['error']['message']} [{job['error']['code']}]", "red"))
    for file in (job["result"] or {}).get("files", ()):
        table.add_row("file", f"{file['name']}  {file['content_type']}  {file['bytes']:,} bytes")
    print_table(table)


def _progress(job: dict[str, Any]) -> str:
    if job["state"] == "queued" and job.get("queue_position"):
        return f"number {job['queue_position']}"
    return f"{job['progress']['percent']:.0f} %"


def _age(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
