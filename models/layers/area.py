"""Area resampling of pictures: every new pixel is the mean of the old ones below it.

The bins are those of adaptive average pooling (and of `interpolate(mode="area")`): bin i of n over a length L covers
floor(i L / n) to ceil((i + 1) L / n). All means come from one table of sums, so that many sizes and many
crops of the same pictures cost one pass over their pixels.
"""

from __future__ import annotations

import torch


class AreaTable:
    """The sums of `uint8` pictures [B, C, H, W] over all rectangles from the upper left corner.

    Sums are int32 and may wrap around in large pictures; the differences that are taken stay
    exact as long as a single bin has fewer than 2**31 / 255 pixels.
    """

    def __init__(self, pictures: torch.Tensor) -> None:
        self.batch, channels, self.height, self.width = pictures.shape
        self.device = pictures.device
        # B, H + 1, W + 1, C: the values gathered for a corner lie together.
        self._sums = pictures.new_zeros(
            (self.batch, self.height + 1, self.width + 1, channels), dtype=torch.int32
        )
        inner = self._sums[:, 1:, 1:]
        inner.copy_(pictures.permute(0, 2, 3, 1))
        inner.cumsum_(dim=1).cumsum_(dim=2)

    def resized(self, height: int, width: int) -> torch.Tensor:
        """Return all pictures in another size: float32 [B, C, height, width]."""
        top, bottom = self._bins(0, self.height, height)
        left, right = self._bins(0, self.width, width)
        rows = self._sums[:, bottom] - self._sums[:, top]  # B, height, W + 1, C
        sums = rows[:, :, right] - rows[:, :, left]
        area = (bottom - top)[:, None] * (right - left)
        return (sums / area[..., None]).permute(0, 3, 1, 2)

    def crops(self, picture: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
        """Return crops in one size: float32 [N, C, size, size].

        `picture` int64 [N] tells which picture, `boxes` int64 [N, 4] where: x0, y0, x1, y1 with the last
        exclusive, inside the picture and not empty.
        """
        x0, y0, x1, y1 = boxes.unbind(1)
        top, bottom = self._bins(y0, y1 - y0, size)  # N, size
        left, right = self._bins(x0, x1 - x0, size)
        one = picture[:, None, None]
        top, bottom = top[:, :, None], bottom[:, :, None]
        left, right = left[:, None, :], right[:, None, :]
        sums = self._sums[one, bottom, right] - self._sums[one, top, right]
        sums -= self._sums[one, bottom, left]
        sums += self._sums[one, top, left]  # N, size, size, C
        area = (bottom - top) * (right - left)
        return (sums / area[..., None]).permute(0, 3, 1, 2)

    def _bins(
        self, start: int | torch.Tensor, length: int | torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        number = torch.arange(count, device=self.device)
        if isinstance(start, torch.Tensor) and isinstance(length, torch.Tensor):
            start, length = start[:, None], length[:, None]
        return start + number * length // count, start - (-(number + 1) * length // count)
