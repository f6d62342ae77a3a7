"""Area resampling of pictures, in NumPy: every new pixel is the mean of the old ones below it.

The bins are those of adaptive average pooling (torch's `interpolate(mode="area")`): bin i of n over a length L covers
floor(i L / n) to ceil((i + 1) L / n). All means come from one table of sums, so that many sizes and many
crops of the same pictures cost one pass over their pixels.
"""

from __future__ import annotations

import numpy as np


class AreaTable:
    """The sums of `uint8` pictures [B, C, H, W] over all rectangles from the upper left corner.

    Sums are int32 and may wrap around in large pictures; the differences that are taken stay
    exact as long as a single bin has fewer than 2**31 / 255 pixels.
    """

    def __init__(self, pictures: np.ndarray) -> None:
        self.batch, self._channels, self.height, self.width = pictures.shape
        # B, H + 1, W + 1, C: the values gathered for a corner lie together.
        self._sums = np.zeros(
            (self.batch, self.height + 1, self.width + 1, self._channels), np.int32
        )
        inner = self._sums[:, 1:, 1:]
        inner[:] = pictures.transpose(0, 2, 3, 1)
        np.cumsum(inner, axis=1, out=inner)
        np.cumsum(inner, axis=2, out=inner)

    def resized(self, height: int, width: int) -> np.ndarray:
        """Return all pictures in another size: float32 [B, C, height, width]."""
        top, bottom = _bins(0, self.height, height)
        left, right = _bins(0, self.width, width)
        rows = self._sums[:, bottom] - self._sums[:, top]  # B, height, W + 1, C
        sums = rows[:, :, right] - rows[:, :, left]
        return _means(sums, (bottom - top)[:, None] * (right - left))

    def crops(self, picture: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
        """Return crops in one size: float32 [N, C, size, size].

        `picture` int64 [N] tells which picture, `boxes` int64 [N, 4] where: x0, y0, x1, y1 with the last
        exclusive, inside the picture and not empty.
        """
        x0, y0, x1, y1 = boxes.T
        top, bottom = (rows[:, :, None] for rows in _bins(y0, y1 - y0, size))  # N, size, 1
        left, right = (columns[:, None, :] for columns in _bins(x0, x1 - x0, size))
        flat = self._sums.reshape(-1, self._channels)
        stride = self.width + 1
        first = picture[:, None, None] * (self.height + 1) * stride
        above, below = first + top * stride, first + bottom * stride
        sums = flat.take(below + right, axis=0)  # N, size, size, C
        sums -= flat.take(above + right, axis=0)
        sums -= flat.take(below + left, axis=0)
        sums += flat.take(above + left, axis=0)
        return _means(sums, (bottom - top) * (right - left))


def _bins(
    start: int | np.ndarray, length: int | np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    number = np.arange(count)
    if isinstance(start, np.ndarray) and isinstance(length, np.ndarray):
        start, length = start[:, None], length[:, None]
    return start + number * length // count, start - (-(number + 1) * length // count)


def _means(sums: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Return sums [B, h, w, C] over areas as pictures [B, C, h, w]."""
    means = sums.astype(np.float32)
    means /= area[..., None].astype(np.float32)
    return np.ascontiguousarray(means.transpose(0, 3, 1, 2))
