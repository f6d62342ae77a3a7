"""Checkpoints of Flax: reading their msgpack files, and the names and layouts of torch for their parameters.

Such a file holds arrays, numbers and text in nested tables, and no code. An array is an extension of type 1
(a single number of type 3): its shape, the name of its dtype and its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import Tensor

from models.weights.errors import UnreadableCheckpoint

_ARRAY, _NUMBER = 1, 3
# Arrays above 1 GiB are written in pieces, under this mark.
_PIECES = "__msgpack_chunked_array__"
_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint32": torch.uint32,
    "bool": torch.bool,
}


def is_flax(head: bytes) -> bool:
    """Tell by a file's first two bytes: a table that is not empty, and whose first key is text."""
    return (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)) and (
        head[0] >= 0xDE or 0xA0 <= head[1] <= 0xBF or head[1] == 0xD9
    )


def read_flax(path: Path) -> Mapping[str, Any]:
    """Return a file's nested tables, with tensors for arrays. Raises UnreadableCheckpoint."""
    try:
        content = msgpack.unpackb(path.read_bytes(), ext_hook=_tensor, object_hook=_joined)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UnreadableCheckpoint(
            f"{path} looks like a Flax checkpoint, but is damaged or cut short ({error})"
        ) from error
    if not isinstance(content, Mapping):
        raise UnreadableCheckpoint(
            f"{path} holds a {type(content).__name__}, not parameters by name"
        )
    return content


def _tensor(kind: int, data: bytes) -> Tensor:
    if kind not in (_ARRAY, _NUMBER):
        raise ValueError(f"values of extension type {kind} are no arrays")
    shape, name, values = msgpack.unpackb(data, raw=False)
    if name not in _DTYPES:
        raise ValueError(f"arrays of {name} are not supported")
    if not math.prod(shape):
        return torch.empty(shape, dtype=_DTYPES[name])
    return torch.frombuffer(bytearray(values), dtype=_DTYPES[name]).reshape(shape)


def _joined(table: dict[str, Any]) -> Any:
    if _PIECES not in table:
        return table
    shape, pieces = (
        [table[key][str(i)] for i in range(len(table[key]))] for key in ("shape", "chunks")
    )
    return torch.cat(pieces).reshape([int(size) for size in shape])


def from_flax(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the parameters of a training state, the averaged ones if there are any, as torch's layers hold them.

    Names are the paths joined by dots; kernels, scales and embeddings become weights. Convolutions go from
    (..., in, out) to (out, in, ...); attention's projections lose their axis of heads.
    """
    parameters: Any = checkpoint
    for key in ("ema_params", "params", "target"):
        parameters = parameters.get(key, parameters)
    return {
        ".".join((*path, _LEAVES.get(leaf, leaf))): _laid_out(path, leaf, value)
        for (*path, leaf), value in _walk(parameters, ())
    }


_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def _walk(
    table: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _walk(value, (*path, name))
        elif isinstance(value, Tensor):
            yield (*path, name), value


def _laid_out(path: list[str], leaf: str, value: Tensor) -> Tensor:
    if leaf == "bias":
        return value.flatten()
    if leaf != "kernel":
        return value
    module = path[-1] if path else ""
    if value.ndim == 3 and module in ("query", "key", "value"):
        value = value.flatten(1)
    elif value.ndim == 3 and module == "out":
        value = value.flatten(0, 1)
    *places, inputs, outputs = range(value.ndim)
    return value.permute(outputs, inputs, *places).contiguous()
