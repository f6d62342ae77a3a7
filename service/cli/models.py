"""`vitrine models`: what can be asked, with weights and licences."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import ApiKey, Json, Target, Url
from service.cli.output import console, messages, print_json, print_table

models = typer.Typer()

_STATES = {"ready": "green", "loading": "yellow", "failed": "red"}
ModelId = Annotated[str, typer.Argument(metavar="ID", help="The model's id.", show_default=False)]


@models.callback(invoke_without_command=True)
def list_models(
    context: typer.Context,
    task: Annotated[str | None, typer.Option(help="Only models of this task.")] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the models with their tasks, weights, licences and states.

    \b
    Examples:
      vitrine models
      vitrine models --task deepfake
      vitrine models show mtcnn
      vitrine models load convnext-base-1k-224
    """
    if context.invoked_subcommand is not None:
        context.obj = Target(url, api_key)
        return
    with Target(url, api_key).connected() as client:
        listed = client.models(task)
    if json:
        print_json(listed)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    longest = max((len(model["id"]) for model in listed["data"]), default=0)
    table.add_column("MODEL", no_wrap=True, min_width=longest)
    for heading in ("TASK", "WEIGHTS", "LICENCE OF THE WEIGHTS", "RUNTIME", "STATE"):
        table.add_column(heading, no_wrap=True)
    for model in listed["data"]:
        name = Text(model["id"], style="bold" if model["default"] else "")
        table.add_row(
            name,
            model["task"],
            _weights(model),
            _licence(model),
            _runtime(model),
            Text(model["state"], style=_STATES.get(model["state"], "dim")),
        )
    print_table(table)
    console.print("Bold: the default of its task.", style="dim")


@models.command()
def show(
    context: typer.Context,
    model_id: ModelId,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show a model's card: paper, licence, input, parameters, figures."""
    with Target.of(context, url, api_key).connected() as client:
        card = client.model(model_id)
    if json:
        print_json(card)
        return
    paper = card["paper"]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    arxiv = f", arXiv {paper['arxiv']}" if paper.get("arxiv") else ""
    rows: list[tuple[str, Any]] = [
        ("model", Text(card["id"], style="bold")),
        ("title", card["title"]),
        ("task", card["task"]),
        ("paper", f"{paper['title']} ({paper['year']}{arxiv})"),
        ("architecture", f"{card['architecture']}, variant {card['variant']}"),
        ("implementation", card["origin"]),
        ("weights", _weights(card)),
        ("licence", _licence(card)),
        ("code licence", card["licence"]["code"]),
        ("input", _input(card)),
        ("labels", _labels(card["labels"])),
        ("runtime", _runtime(card)),
        ("checked", _checked(card.get("acceleration"))),
        ("state", Text(card["state"], style=_STATES.get(card["state"], "dim"))),
    ]
    rows += [("parameter", _parameter(name, p)) for name, p in card["parameters"].items()]
    rows += [
        (m["origin"], f"{m['name']} {m['value']:g} on {m['dataset']}" + _note(m))
        for m in card["metrics"]
    ]
    rows += [("runtime note", note) for note in (card.get("acceleration") or {}).get("reasons", ())]
    rows += [("note", note) for note in card["notes"]]
    for heading, value in rows:
        if value:
            table.add_row(heading, value)
    print_table(table)


@models.command()
def load(
    context: typer.Context,
    model_id: ModelId,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Load a model now; otherwise its first use does."""
    with (
        Target.of(context, url, api_key).connected() as client,
        messages.status(f"loading {model_id}"),
    ):
        model = client.load(model_id)
    _report(model_id, model, json)


@models.command()
def unload(
    context: typer.Context,
    model_id: ModelId,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Unload a model to free its memory."""
    with (
        Target.of(context, url, api_key).connected() as client,
        messages.status(f"unloading {model_id}"),
    ):
        model = client.unload(model_id)
    _report(model_id, model, json)


def _report(model_id: str, model: dict[str, Any], json: bool) -> None:
    if json:
        print_json(model)
    else:
        console.print(f"{model_id} is {model['state']}.")


def _weights(model: dict[str, Any]) -> Text:
    kind = model["weights"]["kind"]
    return Text(kind, style="yellow" if kind in ("demo", "random") else "")


def _licence(model: dict[str, Any]) -> Text:
    licence = model["licence"]
    text = Text(licence["weights"])
    if not licence["commercial"]:
        text.append("  non-commercial", style="red")
    return text


def _runtime(model: dict[str, Any]) -> str:
    precision = {"bfloat16": ", bfloat16", "float32": ", float32"}.get(model["precision"], "")
    return f"{model['runtime']}{precision}"


def _checked(acceleration: dict[str, Any] | None) -> str:
    if acceleration is None or acceleration["error"] is None:
        return ""
    share = acceleration["top1"]
    same = "" if share is None else f", the same best class in {share:.0%}"
    return f"within {acceleration['error']:.2g} of eager float32 on {acceleration['inputs']} inputs{same}"


def _input(card: dict[str, Any]) -> str:
    image = card.get("image")
    if not image:
        return ""
    if image["resize"] == "none":
        return f"pictures of {image['min_side']} to {image['max_side']} pixels a side"
    if image["resize"] == "fit":
        shorter, longer = image["resize_to"], image["max_side"]
        return f"shorter side {shorter}, longer at most {longer}, {image['interpolation']}"
    rule = {
        "squash": "resized to fit",
        "shorter-side": f"shorter side {image['resize_to']}, centre",
    }
    return (
        f"{image['width']} x {image['height']} {image['colour']}, "
        f"{rule[image['resize']]}, {image['interpolation']}"
    )


def _labels(labels: list[str]) -> str:
    if len(labels) <= 6:
        return ", ".join(labels)
    return f"{', '.join(labels[:6])} ... ({len(labels)})"


def _parameter(name: str, parameter: dict[str, Any]) -> str:
    allowed = ""
    if parameter.get("choices"):
        allowed = f" of {', '.join(map(str, parameter['choices']))}"
    elif parameter.get("minimum") is not None or parameter.get("maximum") is not None:
        low, high = parameter.get("minimum"), parameter.get("maximum")
        allowed = f" {_bound(low)}..{_bound(high)}"
    default = f", default {parameter['default']}" if parameter.get("default") is not None else ""
    about = f": {parameter['description']}" if parameter.get("description") else ""
    return f"{name} ({parameter['type']}{allowed}{default}){about}"


def _note(metric: dict[str, Any]) -> str:
    return f" ({metric['note']})" if metric.get("note") else ""


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:.12g}"
