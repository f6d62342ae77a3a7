"""Flax checkpoints: their files, and MAGVIT's networks out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from torch import Tensor

from models.generation._magvit_transformer import BertConfig, MaskedTransformer
from models.reconstruction._magvit_3dvq import TokenizerConfig, VideoTokenizer
from models.weights.checkpoint import read_checkpoint
from models.weights.errors import UnreadableCheckpoint
from models.weights.flax import from_flax

HEADS = 2


def _extension(value: Any) -> Any:
    """Write an array, or a number of NumPy, as Flax does."""
    array = np.asarray(value)
    packed = msgpack.packb((array.shape, array.dtype.name, array.tobytes()))
    return msgpack.ExtType(1 if isinstance(value, np.ndarray) else 3, packed)


def _saved(folder: Path, tree: Any) -> Path:
    path = folder / "checkpoint_100"
    path.write_bytes(msgpack.packb(tree, default=_extension))
    return path


def _tree(state: dict[str, Tensor]) -> dict[str, Any]:
    """Turn a network's weights into the tables in which its Flax original holds them."""
    tree: dict[str, Any] = {}
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        table = tree
        for module in path:
            table = table.setdefault(module, {})
        value = tensor.numpy()
        if "self_attention" in path and leaf == "bias" and path[-1] != "out":
            value = value.reshape(HEADS, -1)
        elif path[-1].endswith("embeddings"):
            leaf = "embedding"
        elif leaf == "weight" and value.ndim == 1:
            leaf = "scale"
        elif leaf == "weight":
            leaf, value = "kernel", np.moveaxis(value, (0, 1), (-1, -2))
            if path[-1] in ("query", "key", "value"):
                value = value.reshape(len(value), HEADS, -1)
            elif path[-1] == "out":
                value = value.reshape(HEADS, -1, value.shape[1])
        table[leaf] = np.ascontiguousarray(value)
    return tree


def _networks() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [
        MaskedTransformer(BertConfig(12, 2, HEADS, 20, 16, 3, 16, (1, 2, 2), 2, 2)),
        VideoTokenizer(TokenizerConfig(32, (1, 2), (True,), 1, embedding_dim=5, codebook_size=7)),
    ]


@pytest.mark.parametrize("network", _networks(), ids=lambda network: type(network).__name__)
def test_a_training_state_becomes_the_network(tmp_path: Path, network: torch.nn.Module) -> None:
    state = network.state_dict()
    averaged = _tree(state)
    other = _tree({name: torch.zeros_like(value) for name, value in state.items()})
    saved = _saved(
        tmp_path, {"global_step": np.int32(7), "ema_params": averaged, "params": other, "rng": None}
    )
    found = from_flax(read_checkpoint(saved))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    del other["decoder" if "decoder" in other else "BertEmbed_0"]
    without = from_flax(read_checkpoint(_saved(tmp_path, {"params": other})))
    assert not any(value.any() for value in without.values())
    assert len(without) < len(state)


def test_large_arrays_are_joined_and_other_precisions_kept(tmp_path: Path) -> None:
    whole = np.arange(6, dtype=np.float16)
    pieces = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 3},
        "chunks": {"0": whole[:4], "1": whole[4:]},
    }
    half = msgpack.ExtType(1, msgpack.packb(((2,), "bfloat16", b"\x80\x3f\x00\x40")))
    saved = _saved(tmp_path, {"a": {"embedding": pieces}, "b": half, "c": np.zeros((0, 2))})
    found = from_flax(read_checkpoint(saved))
    assert torch.equal(found["a.weight"], torch.arange(6).half().view(2, 3))
    assert found["b"].dtype is torch.bfloat16
    assert found["b"].tolist() == [1, 2]
    assert found["c"].shape == (0, 2)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_file_cut_short(tmp_path: Path, kept: float) -> None:
    path = _saved(tmp_path, {"params": {"a": {"kernel": np.ones((4, 5), np.float32)}}})
    content = path.read_bytes()
    path.write_bytes(content[: max(2, int(kept * len(content)))])
    with pytest.raises(UnreadableCheckpoint, match="Flax checkpoint, but is damaged"):
        read_checkpoint(path)


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    for bad in (msgpack.ExtType(2, b""), msgpack.ExtType(1, msgpack.packb(((1,), "object", b"x")))):
        with pytest.raises(UnreadableCheckpoint, match=r"extension type 2|arrays of object"):
            read_checkpoint(_saved(tmp_path, {"a": bad}))
