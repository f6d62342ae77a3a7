"""Checkpoints that are plain pickles of NumPy arrays by name, as detectron2 writes its `.pkl` files."""

from __future__ import annotations

import codecs
import collections
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

# How torch's own older files begin, after the protocol's number.
_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

# All that may be built beside what pickle has of its own; none of it runs code from the file.
_BUILDS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): codecs.encode,  # of bytes, before protocol 3
    **{
        (f"numpy.{core}.multiarray", name): getattr(np.core.multiarray, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _BUILDS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
        return _BUILDS[module, name]


def is_plain_pickle(head: bytes) -> bool:
    """Tell from a file's first bytes whether it is a pickle, but not one of torch's."""
    return head.startswith(b"\x80") and _MAGIC not in head[:32]


def read_arrays(path: Path) -> Any:
    """Return what the pickle holds, arrays as tensors.

    Raises pickle.UnpicklingError for anything that is no data, ValueError or EOFError for a damaged file.
    """
    try:
        with path.open("rb") as file:
            return _tensors(_Arrays(file).load())
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise
        raise ValueError(str(error)) from error


def _tensors(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _tensors(value) for name, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiub":
        return torch.from_numpy(np.array(content, content.dtype.newbyteorder("=")))
    return content
