"""Pictures as patches in places, and back: what ViTok encodes, and what its codes are kept as."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """Tokens [B, N, D], the row and column of each [B, N], and which are used at all, bool [B, N].

    Places that are not used hold zeros at row and column 0.
    """

    tokens: Tensor
    rows: Tensor
    columns: Tensor
    used: Tensor

    def holding(self, tokens: Tensor) -> Patches:
        """Return the same places with other tokens."""
        return replace(self, tokens=tokens)


def patchify(image: Tensor, patch: int, places: int | None = None) -> Patches:
    """Cut pictures [B, 3, H, W] into patches of 3 * patch * patch values (channel, row, column), row by row.

    Zeros fill up the last row and column of patches, and the tokens up to `places`. Raises ValueError if
    there are more patches than places.
    """
    height, width = image.shape[-2:]
    rows, columns = -(-height // patch), -(-width // patch)
    count = rows * columns
    places = count if places is None else places
    if count > places:
        raise ValueError(
            f"{width}x{height} pixels make {count} patches of {patch}, more than {places}"
        )
    padded = F.pad(image, (0, columns * patch - width, 0, rows * patch - height))
    tokens = F.unfold(padded, patch, stride=patch).transpose(1, 2)
    index = torch.arange(count, device=image.device)
    spare = (0, places - count)

    def of_each(value: Tensor) -> Tensor:
        return F.pad(value, spare).expand(len(image), -1)

    return Patches(
        F.pad(tokens, (0, 0, *spare)),
        of_each(index // columns),
        of_each(index % columns),
        of_each(torch.ones_like(index)).bool(),
    )


def unpatchify(patches: Patches, patch: int, size: tuple[int, int]) -> Tensor:
    """Put patches back into pictures [B, 3, height, width] of `size`; what no patch covers is zero."""
    height, width = size
    rows, columns = -(-height // patch), -(-width // patch)
    batch, _, values = patches.tokens.shape
    # Spare places also point to (0, 0): they go to a place of their own, which is dropped.
    place = torch.where(patches.used, patches.rows * columns + patches.columns, rows * columns)
    grid = patches.tokens.new_zeros(batch, rows * columns + 1, values)
    grid = grid.scatter(1, place[..., None].expand(-1, -1, values), patches.tokens)[:, :-1]
    image = F.fold(grid.transpose(1, 2), (rows * patch, columns * patch), patch, stride=patch)
    return image[..., :height, :width]
