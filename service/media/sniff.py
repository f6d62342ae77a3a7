"""What a medium is, told by its first bytes and not by what its sender calls it."""

from __future__ import annotations

from typing import Literal

Kind = Literal["image", "video"]

HEAD_BYTES = 512
"""How many leading bytes `sniff` wants; fewer are enough for short media."""

_STILL_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
}
_QUICKTIME_ATOMS = {b"moov", b"mdat", b"wide", b"free", b"skip"}
_TS_PACKET = 188


def sniff(head: bytes) -> tuple[Kind, str] | None:
    """Return the kind and the media type of what starts with `head`, or None where it is neither."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image", "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image", "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image", "image/gif"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "image", "image/tiff"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "image", "image/bmp"
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in _STILL_BRANDS:
            return "image", _STILL_BRANDS[brand]
        return "video", "video/quicktime" if brand == b"qt  " else "video/mp4"
    if head[4:8] in _QUICKTIME_ATOMS:
        return "video", "video/quicktime"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "video", "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if head.startswith(b"FLV\x01"):
        return "video", "video/x-flv"
    if head.startswith(b"OggS"):
        return "video", "video/ogg"
    if head.startswith((b"\0\0\x01\xba", b"\0\0\x01\xb3")):
        return "video", "video/mpeg"
    if head.startswith(b"G") and head[_TS_PACKET : _TS_PACKET + 1] == b"G":
        return "video", "video/mp2t"
    return None


_RIFF: dict[bytes, tuple[Kind, str]] = {
    b"WEBP": ("image", "image/webp"),
    b"AVI ": ("video", "video/x-msvideo"),
}
