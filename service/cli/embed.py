"""`vitrine embed`: pictures as vectors, and how alike they are."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from service.cli.connection import ApiKey, Json, Url, connected
from service.cli.output import console, fail, messages, print_json, print_table

_SHOWN = 4


def embed(
    files: Annotated[list[Path], typer.Argument(help="Pictures.", exists=True, dir_okay=False)],
    model: Annotated[
        str | None, typer.Option(help="Model id.", show_default="the task's default")
    ] = None,
    similarity: Annotated[
        bool, typer.Option("--similarity", "-s", help="Show how alike the pictures are (cosine).")
    ] = False,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale the vectors to unit length.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            help="One label for each picture, separated by commas; empty for those to be labelled."
        ),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Keep the examples in --labels under this name.")
    ] = None,
    examples: Annotated[
        str | None, typer.Option(help="Label the pictures by examples that were kept.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the vectors as a NumPy file (.npy)."),
    ] = None,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Turn pictures into vectors; compare them.

    \b
    Examples:
      vitrine embed a.jpg b.jpg --similarity
      vitrine embed *.jpg -o vectors.npy
      vitrine embed cat.jpg dog.jpg --labels cat,dog --keep pets
      vitrine embed what.jpg --examples pets
      vitrine embed photo.jpg --json | jq '.data[0].embedding'
    """
    if output is not None and output.suffix.lower() != ".npy":
        fail(f"{output}: the file's name must end in .npy.", status=2)
    parameters = {
        "model": model,
        "normalize": normalize,
        "encoding_format": "base64",
        "labels": labels,
        "keep": keep,
        "examples": examples,
    }
    with connected(url, api_key) as client:
        answer = client.embed(files, parameters)
    vectors = np.stack([_vector(row["embedding"]) for row in answer["data"]])
    cosines = cosine(vectors)
    if output is not None:
        np.save(output, vectors)
    if json:
        for row, vector in zip(answer["data"], vectors, strict=True):
            row["embedding"] = vector.tolist()
        answer["encoding_format"] = "float"
        print_json(answer | ({"similarity": cosines.tolist()} if similarity else {}))
        return
    names = [row["name"] for row in answer["data"]]
    if similarity:
        _show_similarity(names, cosines)
    elif labels or examples:
        _show_labels(answer["data"])
    else:
        _show_vectors(names, vectors)
    console.print(f"model {answer['model']}, {answer['dimensions']} dimensions", style="dim")
    if output is not None:
        console.print(f"Vectors: [bold green]{output}[/]")
    if answer.get("warning"):
        messages.print(answer["warning"], style="yellow", markup=False)


def cosine(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines between all rows of [N, D], as [N, N]; those of a row of zeros are 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    cosines: NDArray[np.float32] = np.clip(directions @ directions.T, -1.0, 1.0)
    return cosines


def _vector(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def _show_similarity(names: list[str], cosines: NDArray[np.float32]) -> None:
    table = _table("", *names)
    for name, row in zip(names, cosines, strict=True):
        table.add_row(Text(name, style="bold"), *(f"{value:.3f}" for value in row))
    print_table(table)


def _show_labels(rows: list[dict[str, Any]]) -> None:
    table = _table("FILE", "LABEL", "COSINE")
    for row in rows:
        if row["predictions"] is None:
            table.add_row(Text(row["name"], style="bold"), Text("example", style="dim"), "")
            continue
        best = row["predictions"][0]
        table.add_row(
            Text(row["name"], style="bold"), Text(best["label"]), f"{best['similarity']:.3f}"
        )
    print_table(table)


def _show_vectors(names: list[str], vectors: NDArray[np.float32]) -> None:
    table = _table("FILE", "LENGTH", "VECTOR")
    for name, vector in zip(names, vectors, strict=True):
        first = ", ".join(f"{value:.3f}" for value in vector[:_SHOWN])
        table.add_row(Text(name, style="bold"), f"{np.linalg.norm(vector):.3f}", f"{first}, …")
    print_table(table)


def _table(*headings: Any) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(Text(heading), no_wrap=True)
    return table
