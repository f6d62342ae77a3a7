"""Where a file's format keeps lengths, counts and sizes: the places where a lie goes deepest."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"iprp", b"ipco"}
# Full boxes that hold boxes, and how many bytes stand before those.
_LATER_BOXES = {b"meta": 4, b"iinf": 6, b"stsd": 8, b"avc1": 78, b"hvc1": 78, b"mp4v": 78}
_TABLES = {b"stts", b"stsc", b"stsz", b"stco", b"stss", b"ctts", b"elst", b"iloc", b"ispe", b"tkhd"}
_MOST = 4000
_LONGEST = 64  # a lying length may be anything


@dataclass(frozen=True, slots=True)
class Field:
    """An unsigned number of `width` bytes at `start`."""

    start: int
    width: int
    big: bool = True


def fields(data: bytes) -> list[Field]:
    """Return the fields of a file of a known format, as far as its structure can be followed."""
    found: list[Field] = []
    for field in _walk(data):
        if field.start + field.width <= len(data):
            found.append(field)
        if len(found) >= _MOST:
            break
    return found


def _walk(data: bytes) -> Iterator[Field]:
    if data.startswith(b"\x89PNG"):
        yield from _png(data)
    elif data.startswith(b"\xff\xd8"):
        yield from _jpeg(data)
    elif data.startswith(b"GIF8"):
        yield from _gif(data)
    elif data.startswith(b"RIFF"):
        yield from _riff(data, 0, len(data))
    elif data.startswith((b"II", b"MM")):
        yield from _tiff(data)
    elif data.startswith(b"BM"):
        for start, width in ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4)):
            yield Field(start, width, big=False)
        yield Field(46, 4, big=False)
    elif data[4:8] in (b"ftyp", b"moov", b"wide"):
        yield from _boxes(data, 0, len(data))
    elif data.startswith(b"\x1aE\xdf\xa3"):
        yield from _matroska(data)
    elif data.startswith(b"FLV"):
        yield from _flv(data)
    elif data.startswith(b"G"):
        yield from (Field(start + 1, 3) for start in range(0, len(data), 188))
    elif data.startswith(b"\0\0\1"):
        yield from _start_codes(data)


def _png(data: bytes) -> Iterator[Field]:
    place = 8
    while place + 8 <= len(data):
        yield Field(place, 4)
        length = struct.unpack_from(">I", data, place)[0]
        kind, body = data[place + 4 : place + 8], place + 8
        if kind == b"IHDR":
            yield from (Field(body, 4), Field(body + 4, 4))
            yield from (Field(body + i, 1) for i in range(8, 13))
        elif kind in (b"acTL", b"fcTL"):
            yield from (Field(body + i, 4) for i in range(0, min(length, _LONGEST) - 3, 4))
        place += length + 12


def _jpeg(data: bytes) -> Iterator[Field]:
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        yield Field(place + 2, 2)
        if marker in (0xC0, 0xC1, 0xC2):
            yield from (Field(place + 4, 1), Field(place + 5, 2), Field(place + 7, 2))
            yield from (Field(place + i, 1) for i in range(9, 19))
        elif marker in (0xC4, 0xDB, 0xDA):
            yield from (Field(place + i, 1) for i in range(4, 22))
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
        if marker == 0xDA:
            next_marker = data.find(b"\xff\xc4", place)
            place = next_marker if next_marker >= 0 else len(data)


def _gif(data: bytes) -> Iterator[Field]:
    yield from (Field(6, 2, big=False), Field(8, 2, big=False), Field(10, 1))
    if len(data) < 13:
        return
    place = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    while place + 10 < len(data):
        if data[place] == 0x2C:
            yield from (Field(place + i, 2, big=False) for i in (1, 3, 5, 7))
            yield Field(place + 9, 1)
            table = 3 << ((data[place + 9] & 7) + 1) if data[place + 9] & 0x80 else 0
            yield Field(place + 10 + table, 1)  # bits a code begins with
            place += 11 + table
        elif data[place] == 0x21:
            place += 2
        else:
            return
        while place < len(data) and data[place]:
            yield Field(place, 1)
            place += data[place] + 1
        place += 1


def _riff(data: bytes, place: int, end: int) -> Iterator[Field]:
    while place + 8 <= min(end, len(data)):
        kind, length = struct.unpack_from("<4sI", data, place)
        yield Field(place + 4, 4, big=False)
        if kind in (b"RIFF", b"LIST"):
            yield from _riff(data, place + 12, min(place + 8 + length, end))
        elif kind in (b"avih", b"strh", b"strf", b"idx1"):
            inside = range(place + 8, min(place + 8 + length, place + 200) - 3, 4)
            yield from (Field(at, 4, big=False) for at in inside)
        elif kind in (b"VP8X", b"ANMF"):
            yield from (
                Field(place + 8 + i, 3, big=False) for i in range(0, min(length, _LONGEST) - 2, 3)
            )
        elif kind in (b"VP8 ", b"VP8L"):
            yield from (Field(place + 8 + i, 2, big=False) for i in range(0, 10, 2))
        place += 8 + length + (length & 1)


def _tiff(data: bytes) -> Iterator[Field]:
    big = data.startswith(b"MM")
    order = ">" if big else "<"
    yield Field(4, 4, big)
    if len(data) < 8:
        return
    place = struct.unpack_from(order + "I", data, 4)[0]
    for _ in range(4):
        if not 0 < place <= len(data) - 2:
            return
        yield Field(place, 2, big)
        count = struct.unpack_from(order + "H", data, place)[0]
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            yield from (Field(entry, 2, big), Field(entry + 2, 2, big))
            yield from (Field(entry + 4, 4, big), Field(entry + 8, 4, big))
        place += 2 + 12 * count
        yield Field(place, 4, big)
        if place + 4 > len(data):
            return
        place = struct.unpack_from(order + "I", data, place)[0]


def _boxes(data: bytes, place: int, end: int) -> Iterator[Field]:
    while place + 8 <= min(end, len(data)):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield Field(place, 4)
        body = place + 8
        stop = min(place + length, end)
        if kind in _BOXES:
            yield from _boxes(data, body, stop)
        elif kind in _LATER_BOXES:
            yield from _boxes(data, body + _LATER_BOXES[kind], stop)
        elif kind in _TABLES:
            yield from (Field(at, 4) for at in range(body + 4, min(stop, body + 100) - 3, 4))
        elif kind in (b"avcC", b"hvcC", b"av1C", b"esds", b"pitm", b"ipma", b"infe"):
            yield from (Field(at, 2) for at in range(body, min(stop, body + 60) - 1, 2))
        if length < 8:
            return
        place += length


def _matroska(data: bytes) -> Iterator[Field]:
    """Follow EBML elements: an id and a length, each a number that tells its own width."""
    place = 0
    while place + 2 < len(data):
        id_width = _vint_width(data[place])
        size_at = place + id_width
        if id_width == 0 or size_at >= len(data):
            return
        size_width = _vint_width(data[size_at])
        if size_width == 0:
            return
        yield Field(size_at, size_width)
        size = int.from_bytes(data[size_at : size_at + size_width], "big")
        size &= (1 << 7 * size_width) - 1
        body = size_at + size_width
        if data[place:size_at] in _MASTERS:
            place = body
        else:
            if size <= 8:
                yield Field(body, max(1, size))
            place = body + size


_MASTERS = {
    bytes.fromhex(id)
    for id in [
        "18538067",
        "1549a966",
        "1654ae6b",
        "ae",
        "e0",
        "1f43b675",
        "a0",
        "1c53bb6b",
        "bb",
        "b7",
        "114d9b74",
        "4dbb",
    ]
}


def _vint_width(first: int) -> int:
    return 9 - first.bit_length() if first else 0


def _flv(data: bytes) -> Iterator[Field]:
    yield Field(5, 4)
    place = 13
    while place + 11 <= len(data):
        yield from (Field(place, 1), Field(place + 1, 3), Field(place + 4, 3))
        yield from (Field(place + 11, 1), Field(place + 12, 4))
        length = int.from_bytes(data[place + 1 : place + 4], "big")
        place += 11 + length
        yield Field(place, 4)
        place += 4


def _start_codes(data: bytes) -> Iterator[Field]:
    place = 0
    while (place := data.find(b"\0\0\1", place)) >= 0:
        yield from (Field(place + 3, 1), Field(place + 4, 2), Field(place + 6, 2))
        place += 3
