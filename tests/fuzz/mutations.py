"""Damage to files, by a random generator: the same generator and file give the same damage."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from random import Random

from tests.fuzz.layout import Field, fields

_MAX_BYTES = 200_000


def damage(random: Random, name: str, seeds: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Return what was done to the seed `name`, and the damaged file.

    Mostly one kind of damage, at times up to four on top of each other.
    """
    data = seeds[name]
    others = list(seeds.values())
    done = []
    for _ in range(random.choice((1, 1, 1, 1, 2, 2, 4))):
        kind, change = random.choice(_KINDS)
        data = change(random, data, others)[:_MAX_BYTES]
        done.append(kind)
    if data.startswith(b"\x89PNG") and random.random() < 0.7:
        data = with_checksums(data)
    return "+".join(done), data


def _truncate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _flip_bits(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return _flipped(random, data, len(data))


def _flip_head(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return _flipped(random, data, min(len(data), 256))


def _flipped(random: Random, data: bytes, end: int) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 4, 16, 64)) if end else 0):
        changed[random.randrange(end)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwrite(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Write zeros, ones or noise over a stretch."""
    start, end = _stretch(random, data)
    length = end - start
    filling = random.choice((b"\0" * length, b"\xff" * length, random.randbytes(length)))
    return data[:start] + filling + data[end:]


def _delete(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _stretch(random, data)
    return data[:start] + data[end:]


def _repeat(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _stretch(random, data)
    return data[:end] + data[start:end] * random.choice((1, 2, 20, 1000)) + data[end:]


def _swap(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Exchange two neighbouring stretches: chunks where the format has chunks."""
    starts = sorted({field.start for field in fields(data)} | {len(data)})
    if len(starts) >= 3 and random.random() < 0.7:
        a, b, c = sorted(random.sample(starts, 3))
    else:
        a, b, c = sorted(random.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Begin as this file and go on as another, whatever its format."""
    other = random.choice(others)
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other)) :]


def _join(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data + random.choice(others)


def _lie(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Write a wrong value into fields that hold lengths, counts or sizes."""
    found = fields(data)
    if not found:
        return _flip_head(random, data, others)
    for field in random.sample(found, min(len(found), random.choice((1, 1, 2, 4)))):
        data = _with_field(data, field, _lies(random, data, field))
    return data


def _lies(random: Random, data: bytes, field: Field) -> int:
    top = (1 << 8 * field.width) - 1
    order = "big" if field.big else "little"
    value = int.from_bytes(data[field.start : field.start + field.width], order)  # type: ignore[arg-type]
    lies = (0, 1, value - 1, value + 1, value * 2, top, top >> 1, (top >> 1) + 1, top - 7, 16384)
    return random.choice((*lies, random.randrange(top + 1))) & top


def _with_field(data: bytes, field: Field, value: int) -> bytes:
    order = "big" if field.big else "little"
    written = value.to_bytes(field.width, order)  # type: ignore[arg-type]
    return data[: field.start] + written + data[field.start + field.width :]


def _stretch(random: Random, data: bytes) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 2, 4, 16, 64, 256)))


def with_checksums(data: bytes) -> bytes:
    """Return a PNG whose checksums fit its chunks, so that damage gets behind their check."""
    changed, place = bytearray(data), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[place + 4 : end]))
        place = end + 4
    return bytes(changed)


_Change = Callable[[Random, bytes, Sequence[bytes]], bytes]

_KINDS: tuple[tuple[str, _Change], ...] = (
    ("truncate", _truncate),
    ("flip", _flip_bits),
    ("flip", _flip_bits),
    ("head", _flip_head),
    ("overwrite", _overwrite),
    ("delete", _delete),
    ("repeat", _repeat),
    ("swap", _swap),
    ("splice", _splice),
    ("join", _join),
    ("lie", _lie),
    ("lie", _lie),
    ("lie", _lie),
)
