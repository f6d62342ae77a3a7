"""The Dockerfile as its stages, for tests."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """One stage: what it begins with, and its instructions in order."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [value for name, value in self.instructions if name == instruction]

    def last(self, instruction: str) -> str:
        """Return the value of the last such instruction, here or in the stages that this begins with."""
        found = self.all(instruction)
        return found[-1] if found else stages()[self.base].last(instruction)

    def entry_point(self) -> list[str]:
        words: list[str] = json.loads(self.last("ENTRYPOINT"))
        return words


@cache
def stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name."""
    parser = DockerfileParser(str(ROOT / "Dockerfile"), cache_content=True)
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for entry in parser.structure:
        instruction, value = str(entry["instruction"]), str(entry["value"])
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", value).groups()  # type: ignore[union-attr]
            current = found[name] = Stage(base)
        elif instruction != "COMMENT" and current is not None:
            current.instructions.append((instruction, value))
    return found


def arguments() -> dict[str, str]:
    """Return the build arguments' defaults, of all stages."""
    parser = DockerfileParser(str(ROOT / "Dockerfile"), cache_content=True)
    values = [str(e["value"]) for e in parser.structure if e["instruction"] == "ARG"]
    return dict(value.split("=", 1) for value in values if "=" in value)


def variables(stage: Stage) -> dict[str, str]:
    """Return the stage's environment, with that of the stages that it begins with."""
    inherited: dict[str, Any] = variables(stages()[stage.base]) if stage.base in stages() else {}
    own = [pair for value in stage.all("ENV") for pair in shlex.split(value)]
    return {**inherited, **dict(pair.split("=", 1) for pair in own)}
