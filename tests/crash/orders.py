"""What clients ask for: jobs of every outcome, each with a token that is found again in its result."""

from __future__ import annotations

import io
import random
import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import shake_256

import numpy as np
from PIL import Image

from tests.crash.tasks import carried


class Kind(StrEnum):
    """What a job is made to do; `may_end` says as what it may end, accidents aside."""

    PICTURE = "picture"
    PICTURE_FAILS = "picture, model fails"
    PICTURE_REFUSED = "picture, model refuses"
    PICTURE_POISON = "picture, kills its model"
    CARRY = "carry a picture"
    CARRY_CLIP = "carry a clip"
    CARRY_SLOWLY = "carry slowly"
    CARRY_BAD = "carry, bad input"
    CARRY_BUG = "carry, bug"
    CARRY_POISON = "carry, kills its worker"
    WRONG = "wrong request"


_SHARES = {
    Kind.PICTURE: 34,
    Kind.PICTURE_FAILS: 4,
    Kind.PICTURE_REFUSED: 4,
    Kind.CARRY: 24,
    Kind.CARRY_CLIP: 12,
    Kind.CARRY_SLOWLY: 8,
    Kind.CARRY_BAD: 5,
    Kind.CARRY_BUG: 4,
    Kind.WRONG: 5,
}
FAILURES = {
    Kind.PICTURE_FAILS: "model_failed",
    Kind.PICTURE_REFUSED: "invalid_input",
    Kind.CARRY_BAD: "not_carried",
    Kind.CARRY_BUG: "internal_error",
}
"""The error code that a job of this kind ends with."""

POISONS = (Kind.PICTURE_POISON, Kind.CARRY_POISON)


@dataclass
class Order:
    """One client's wish and what became of it.

    `maybe_made` counts the requests without a key that may have made a job without the client's
    knowing; `states` holds what the client saw, `history` all of it in words.
    """

    token: str
    kind: Kind
    delay_s: float
    key: str | None
    lane: str
    cancel_after_s: float | None
    watch: str
    upload: bytes = b""
    job: str | None = None
    refused: bool = False
    maybe_made: int = 0
    cancels: int = 0
    fetched: bool = False
    states: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.history.append(f"{time.time():.3f} {text}")

    @property
    def request(self) -> tuple[str, dict[str, str], str | None, object]:
        """Path with query, headers, content type of a raw body, and the body (bytes or JSON)."""
        headers = {"Idempotency-Key": self.key} if self.key else {}
        if self.kind is Kind.WRONG:
            return "/v1/generate/image", headers, None, {"prompt": self.token, "steps": 0}
        if self.kind in _WORDS:
            prompt = f"{_WORDS[self.kind]}{self.token}"
            body = {"prompt": prompt, "seed": 1, "priority": self.lane}
            return "/v1/generate/image", headers, None, body
        end = {
            Kind.CARRY_BAD: "bad input",
            Kind.CARRY_BUG: "bug",
            Kind.CARRY_POISON: "poison",
        }.get(self.kind, "well")
        steps = 150 if self.kind is Kind.CARRY_SLOWLY else 2
        query = f"mode=async&token={self.token}&priority={self.lane}&end={end}&steps={steps}&step_s=0.01"
        kind = "video/mp4" if self.kind is Kind.CARRY_CLIP else "image/png"
        return f"/v1/carry?{query}", headers, kind, self.upload

    def is_right(self, result: bytes) -> bool:
        """Tell whether these are the bytes that this job, and no other, gives."""
        if self.kind not in _WORDS:
            return result == carried(self.token, self.upload)
        pixels = np.asarray(Image.open(io.BytesIO(result)))
        prompt = f"{_WORDS[self.kind]}{self.token}"
        return pixels.tobytes() == shake_256(prompt.encode()).digest(32 * 32 * 3)


_WORDS = {
    Kind.PICTURE: "",
    Kind.PICTURE_FAILS: "fail ",
    Kind.PICTURE_REFUSED: "refuse ",
    Kind.PICTURE_POISON: "poison ",
}


def draw(rng: random.Random, count: int, poison: Kind | None) -> list[Order]:
    """Return a burst of `count` orders over a second and a half, with one poison job if asked for."""
    kinds = rng.choices(list(_SHARES), list(_SHARES.values()), k=count)
    if poison is not None:
        kinds[count // 2] = poison
    orders = []
    for kind in kinds:
        cancels = (kind is Kind.CARRY_SLOWLY and rng.random() < 0.7) or rng.random() < 0.07
        orders.append(
            Order(
                # Not of the seed: tokens of two runs on one machine must differ.
                token=secrets.token_hex(12),
                kind=kind,
                delay_s=rng.uniform(0, 1.5),
                key=secrets.token_hex(8) if rng.random() < 0.7 else None,
                lane=rng.choices(("high", "normal", "low"), (1, 7, 2))[0],
                cancel_after_s=rng.uniform(0, 1.2) if cancels else None,
                watch=rng.choices(("events", "poll", "leave"), (5, 4, 2))[0],
                upload=_upload(rng, kind),
            )
        )
    return orders


def _upload(rng: random.Random, kind: Kind) -> bytes:
    if kind in _WORDS or kind is Kind.WRONG:
        return b""
    if kind is Kind.CARRY_CLIP:  # beyond a MiB, where it goes to a file while it comes in
        return b"\0\0\0\x18ftypisom" + rng.randbytes(rng.randrange(1_000_000, 2_500_000))
    return b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randrange(1_000, 200_000))
