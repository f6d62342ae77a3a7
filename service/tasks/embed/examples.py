"""Examples that a caller keeps: for each label the mean direction of its pictures' vectors, in the storage."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from service.errors import Conflict, ExamplesNotFound, NotFound, StorageUnavailable
from service.storage.store import Store
from service.tasks.embed.vectors import Vector, encoded
from service.triton.cards import Card

MOST_SETS = 100
_PREFIX, _SUFFIX = "examples", ".json"

ExamplesName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class LabelExamples(BaseModel):
    """One label of a set."""

    model_config = ConfigDict(frozen=True)

    label: str
    count: int = Field(description="Number of its examples.", ge=1)


class ExampleSet(BaseModel):
    """What is kept: labels and the directions that stand for them, and whose vectors they are."""

    model_config = ConfigDict(frozen=True)

    name: ExamplesName
    model: str = Field(description="Id of the model whose vectors they are.")
    weights: str | None = Field(description="SHA-256 of its weights then, where known.")
    dimensions: int = Field(description="Numbers in each direction.")
    labels: list[LabelExamples]
    directions: str = Field(
        description="labels x dimensions numbers of unit length: base64 of little-endian float32."
    )

    def vectors(self) -> Vector:
        """Return the directions [labels, D]."""
        flat = np.frombuffer(base64.b64decode(self.directions), "<f4").astype(np.float32)
        return flat.reshape(len(self.labels), self.dimensions)

    def fits(self, card: Card) -> bool:
        """Return whether vectors of the model with this card may be compared with these."""
        return (self.model, self.weights) == (card.id, card.weights.sha256)


def example_set(
    name: str, card: Card, labels: Sequence[str], names: Sequence[str], directions: Vector
) -> ExampleSet:
    """Return the set of `directions` [names, D] that stand for `names`, made of pictures labelled `labels`."""
    return ExampleSet(
        name=name,
        model=card.id,
        weights=card.weights.sha256,
        dimensions=directions.shape[1],
        labels=[LabelExamples(label=each, count=labels.count(each)) for each in names],
        directions=str(encoded(directions, "base64")),
    )


class Examples:
    """The sets of one tenant. All methods raise StorageUnavailable."""

    def __init__(self, store: Store | None, tenant: str) -> None:
        self._given = store
        # A tenant's name need not be a path's part.
        self._folder = f"{_PREFIX}/{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"

    async def keep(self, kept: ExampleSet) -> None:
        """Keep a set; one of the same name is replaced. Raises Conflict beyond `MOST_SETS`."""
        names = await self._names()
        if kept.name not in names and len(names) >= MOST_SETS:
            raise Conflict(
                f"{MOST_SETS} sets of examples are kept, which is the most; delete one first.",
                code="too_many_examples",
                limit={"name": "example_sets", "sets": MOST_SETS},
            )
        data = kept.model_dump_json().encode()
        await self._store.put(self._key(kept.name), data, "application/json")

    async def get(self, name: str) -> ExampleSet:
        """Return a set. Raises ExamplesNotFound."""
        try:
            data = await self._store.get(self._key(name))
            return ExampleSet.model_validate_json(data)
        except (NotFound, ValidationError) as error:
            raise ExamplesNotFound(f"No examples are kept as {name!r}.") from error

    async def all(self) -> list[ExampleSet]:
        """Return all sets by name."""
        sets = []
        for name in sorted(await self._names()):
            with suppress(ExamplesNotFound):  # deleted meanwhile
                sets.append(await self.get(name))
        return sets

    async def delete(self, name: str) -> None:
        """Delete a set. Raises ExamplesNotFound."""
        await self.get(name)
        await self._store.delete(self._key(name))

    async def _names(self) -> list[str]:
        found = [each.key async for each in self._store.objects(self._folder)]
        return [key.rpartition("/")[2].removesuffix(_SUFFIX) for key in found]

    @property
    def _store(self) -> Store:
        if self._given is None:
            raise StorageUnavailable("There is no storage to keep examples in.")
        return self._given

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}{_SUFFIX}"
