"""Reading of checkpoint files in the authors' formats, without ever running code from them.

Files are told apart by their first bytes, not by their names: safetensors, what `torch.save` writes
(zip, or the older stream of pickles), a plain pickle of arrays, or Flax's msgpack. Pickles are read with
`weights_only=True`; on top of what torch allows there are only plain containers that training scripts leave in checkpoints.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import re
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.weights.arrays import is_plain_pickle, read_arrays
from models.weights.errors import UnreadableCheckpoint, UnsafeCheckpoint
from models.weights.flax import is_flax, read_flax

_LEGACY_PICKLE = b"\x80"
_ZIP = b"PK\x03\x04"


class _Settings:
    """Stands in for dictionaries of other kinds, among them those of packages not installed here.

    Weights-only unpickling fills no subclass of dict but OrderedDict, so that is what it gets.
    """

    def __new__(cls, *arguments: Any) -> Any:
        return collections.OrderedDict()


# What weights-only unpickling may build beside torch's own list. Each only holds data.
_CONTAINERS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    *(dict, list, set, int, float),
    (_Settings, "collections.defaultdict"),
    (_Settings, "yacs.config.CfgNode"),
    (_Settings, "fvcore.common.config.CfgNode"),
    (_Settings, "easydict.EasyDict"),
    (_Settings, "addict.addict.Dict"),
    (_Settings, "mmcv.utils.config.ConfigDict"),
    (_Settings, "timm.utils.AttrDict"),
    *((pathlib.PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "PurePosixPath")),
    (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
    np.dtype,
    np.ndarray,
    *((np.core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(
        (np.core.multiarray._reconstruct, f"numpy.{core}.multiarray._reconstruct")
        for core in ("core", "_core")
    ),
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdSU"},
]


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Return what the file holds, as the authors saved it: tensors by name, or wrapper keys around them.

    Flax's files hold tables in tables (`models/weights/flax.py`).

    Tensors are on the CPU. Raises UnsafeCheckpoint if unpickling would have to run code, and
    UnreadableCheckpoint for everything that is no whole checkpoint.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UnreadableCheckpoint(f"cannot read {path}: {error.strerror}") from error
    # A header's length below 4 GB, then the header, which is JSON.
    if head[4:9] == b"\0\0\0\0{":
        return _safetensors(path)
    if head.startswith((_ZIP, _LEGACY_PICKLE)):
        return _pickled(path, zipped=head.startswith(_ZIP), plain=is_plain_pickle(head))
    if len(head) > 1 and is_flax(head):
        return read_flax(path)
    raise UnreadableCheckpoint(f"{path} is no checkpoint: {_guess(head)}")


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UnreadableCheckpoint(f"{path} is a damaged safetensors file: {error}") from error


def _pickled(path: Path, *, zipped: bool, plain: bool) -> Mapping[str, Any]:
    try:
        if plain:
            content = read_arrays(path)
        else:
            with torch.serialization.safe_globals(_CONTAINERS), warnings.catch_warnings():
                # Of old storage types, which are only how old files name their tensors.
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # A damaged pickle makes the unpickler fail in any way.
        if "TorchScript" in str(error):
            raise _refused(path, str(error)) from error
        raise UnreadableCheckpoint(f"{path} is damaged or cut short ({_brief(error)})") from error
    if not isinstance(content, Mapping):
        raise UnreadableCheckpoint(
            f"{path} holds a {type(content).__name__}, not tensors by name: save a state_dict()"
        )
    return content


def _refused(path: Path, message: str) -> UnsafeCheckpoint | UnreadableCheckpoint:
    if "TorchScript" in message:
        return UnreadableCheckpoint(
            f"{path} is a TorchScript program, not a checkpoint: save the state_dict() of the "
            "network it came from"
        )
    named = re.search(r"GLOBAL (\S+)", message)
    needed = f"needs {named[1]}" if named else "is no plain table of tensors"
    return UnsafeCheckpoint(
        f"{path} is refused: its pickle {needed}, and loading that would run code. If you trust it, "
        "save the tensors alone where it was made: "
        'safetensors.torch.save_file(model.state_dict(), "model.safetensors")'
    )


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip("'\"\n").split(". ")[0].splitlines()[0]


def _guess(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "the file is empty"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; download the file itself, not the page that shows it"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file of another framework"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        return "a compressed archive; unpack it first"
    return "neither safetensors nor written by torch.save or by Flax"
