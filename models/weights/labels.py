"""Labels files: one name a line, a JSON list, or a JSON object from index to name."""

from __future__ import annotations

import json
from pathlib import Path

from models.weights.errors import WrongLabels


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the names by class index. Raises WrongLabels, which says what is wrong and where.

    A JSON object's keys must be 0 .. N-1; a value may be a list whose last item is the name, as in
    ImageNet's `{"0": ["n01440764", "tench"]}`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise WrongLabels(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongLabels(f"{path} is not UTF-8 text") from error
    if text.lstrip().startswith(("[", "{")):
        names = _json(path, text)
    else:
        names = [line.strip() for line in text.rstrip().splitlines()]
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise WrongLabels(f"{path}: label {index} is {name!r}, not a name")
    if not names:
        raise WrongLabels(f"{path} holds no labels")
    return tuple(str(name).strip() for name in names)


def _json(path: Path, text: str) -> list[object]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise WrongLabels(f"{path} is not valid JSON: {error}") from error
    if isinstance(content, list):
        return content
    try:
        by_index = {int(key): value for key, value in content.items()}
    except ValueError as error:
        raise WrongLabels(f"{path}: the keys must be class indices 0, 1, 2 …") from error
    absent = sorted(set(range(len(content))) - set(by_index))
    if absent:
        raise WrongLabels(f"{path}: {len(content)} labels, but none for class {absent[0]}")
    return [
        value[-1] if isinstance(value, list) and value else value
        for _, value in sorted(by_index.items())
    ]
