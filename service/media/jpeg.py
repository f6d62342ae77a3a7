"""How often a JPEG's decoder must pass over the whole picture: once a scan, however short the scan."""

from __future__ import annotations

import re

from service.errors import PayloadTooLarge

MAX_SCANS = 100
"""Progressive encoders write about ten; libtiff draws the same line."""

_MAX_MARKERS = 10_000
_SOS, _EOI = 0xDA, 0xD9

# In coded data, a marker is FF and a byte that is neither stuffing, a restart, nor another FF.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def check_scans(data: bytes) -> None:
    """Raise PayloadTooLarge (`too_complex`) if the JPEG `data` has more than MAX_SCANS scans.

    Follows the markers up to the end of the picture, so that thumbnails and what stands behind the
    picture (a phone's clip) do not count.
    """
    place, scans = 2, 0
    for _ in range(_MAX_MARKERS):
        found = _MARKER.search(data, place)
        if found is None or data[found.end() - 1] == _EOI:
            return
        scans += data[found.end() - 1] == _SOS
        if scans > MAX_SCANS:
            break
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    raise PayloadTooLarge(
        f"the JPEG has more than {MAX_SCANS} scans or {_MAX_MARKERS:,} segments", code="too_complex"
    )
