"""Checkpoint files as authors leave them, as transfers break them and as attackers make them."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import pickle
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.weights.checkpoint import read_checkpoint
from models.weights.errors import UnreadableCheckpoint, UnsafeCheckpoint
from tests.models.tiny import saved

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def read(folder: Path, content: object, zipped: bool = True) -> Any:
    path = folder / "checkpoint.pth"
    path.write_bytes(saved(content, _use_new_zipfile_serialization=zipped))
    return read_checkpoint(path)


@FORMATS
def test_tensors_come_back_exactly(tmp_path: Path, zipped: bool) -> None:
    found = read(tmp_path, {"model": collections.OrderedDict(TENSORS), "epoch": 3}, zipped)
    assert found["epoch"] == 3
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_safetensors_under_any_name(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path / name)
    found = read_checkpoint(tmp_path / name)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@FORMATS
def test_what_training_scripts_leave_beside_the_tensors(tmp_path: Path, zipped: bool) -> None:
    found = read(
        tmp_path,
        {
            "model": TENSORS,
            "args": argparse.Namespace(
                lr=np.float64(0.1), output=pathlib.Path("runs/1"), gpus=None
            ),
            "best": np.float32(82.1),
            "step": np.int64(7),
            "done": np.bool_(True),
            "curve": np.linspace(0, 1, 3),
            "counts": collections.defaultdict(int, {"train": 4}),
            "space": types.SimpleNamespace(depth=12),
            "seen": {1, 2},
        },
        zipped,
    )
    assert found["args"].lr == 0.1
    assert str(found["args"].output) == "runs/1"
    assert (found["best"], found["step"], found["done"]) == (np.float32(82.1), 7, True)
    assert found["curve"].tolist() == [0, 0.5, 1]
    assert found["counts"] == {"train": 4}
    assert torch.equal(found["model"]["a.weight"], TENSORS["a.weight"])


@pytest.mark.parametrize("protocol", [2, 4])
def test_detectron2_s_pickles_of_arrays(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.pkl"
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    arrays["big.endian"] = np.arange(3, dtype=">f4")
    content = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_checkpoint(path)
    assert found["matching_heuristics"] is True
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in TENSORS.items())
    assert found["model"]["big.endian"].tolist() == [0, 1, 2]


@FORMATS
def test_configurations_of_packages_that_are_not_installed(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")

    class CfgNode(dict[str, Any]):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", package)
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    config = CfgNode(MODEL=CfgNode(TYPE="swin"))
    config.__dict__["frozen"] = True
    content = saved({"model": TENSORS, "config": config}, _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    (tmp_path / "swin.pth").write_bytes(content)
    assert read_checkpoint(tmp_path / "swin.pth")["config"]["MODEL"]["TYPE"] == "swin"


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@FORMATS
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "proof"
    with pytest.raises(
        UnsafeCheckpoint, match=r"needs posix\.system.*safetensors\.torch\.save_file"
    ):
        read(tmp_path, {"model": TENSORS, "extra": Payload(proof)}, zipped)
    assert not proof.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "w.pkl", tmp_path / "proof"
    path.write_bytes(pickle.dumps({"extra": Payload(proof)}))
    with pytest.raises(UnsafeCheckpoint, match="would run code"):
        read_checkpoint(path)
    assert not proof.exists()


@FORMATS
def test_a_whole_pickled_network_is_refused(tmp_path: Path, zipped: bool) -> None:
    with pytest.raises(UnsafeCheckpoint, match="Linear"):
        read(tmp_path, torch.nn.Linear(2, 2), zipped)


@FORMATS
def test_a_single_tensor_is_no_checkpoint(tmp_path: Path, zipped: bool) -> None:
    with pytest.raises(UnreadableCheckpoint, match="holds a Tensor"):
        read(tmp_path, torch.ones(2), zipped)


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(UnreadableCheckpoint, match="TorchScript program"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / "w"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        path.write_bytes(saved(TENSORS, _use_new_zipfile_serialization=kind == "zip"))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UnreadableCheckpoint):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"\x1f\x8b" + bytes(99), "a compressed archive"),
        (bytes(1000), "neither safetensors nor"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UnreadableCheckpoint, match=said):
        read_checkpoint(tmp_path / "w.pth")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCheckpoint, match="No such file"):
        read_checkpoint(tmp_path / "w.pth")
