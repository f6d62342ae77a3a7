"""Which network a checkpoint belongs to, and what the converted file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from models.architecture import StateDict
from models.registry import architecture
from models.weights import conversion
from models.weights.conversion import convert
from models.weights.errors import WeightsError, WrongArchitecture
from models.weights.fit import fit
from tests.models.tiny import Tiny, official_state

TINY = Tiny()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two architectures, so that a search does not build every network there is."""
    two = {"mtcnn": architecture("mtcnn"), "tiny": TINY}
    monkeypatch.setattr(conversion, "architectures", lambda: two)


def prefixed(state: StateDict, prefix: str) -> StateDict:
    return {prefix + name: tensor for name, tensor in state.items()}


STATE = official_state()


@pytest.mark.parametrize(
    "checkpoint",
    [
        STATE,
        {"model": STATE, "epoch": 1},
        {"state_dict": prefixed(STATE, "module.")},
        {"state_dict": prefixed(STATE, "model.")},
        {"model": prefixed(STATE, "module._orig_mod."), "optimizer": {"state": {}, "lr": 0.1}},
        {"state": {"ema": {"net": STATE}}},
        {"params_ema": STATE, "iteration": torch.tensor(3)},
        TINY.translate(STATE, {}),
    ],
    ids=["flat", "model", "ddp", "lightning", "compiled", "nested", "beside-a-tensor", "native"],
)
def test_wrappers_and_prefixes_are_opened(checkpoint: dict[str, Any]) -> None:
    fitted = fit(TINY, "small", [checkpoint])
    assert fitted.exact
    assert torch.equal(fitted.state["head.weight"], STATE["fc.weight"])


def test_files_older_than_the_batch_counter_fit() -> None:
    old = {name: t for name, t in STATE.items() if not name.endswith("num_batches_tracked")}
    assert fit(TINY, "small", [old]).exact


def test_the_head_tells_the_number_of_classes() -> None:
    fitted = fit(TINY, "small", [official_state(classes=7)])
    assert fitted.exact
    assert fitted.config["num_classes"] == 7


def test_what_does_not_fit_is_listed() -> None:
    state = official_state(width=16)
    del state["bn.bias"], state["bn.weight"]
    fitted = fit(TINY, "small", [state | {"extra.scale": torch.ones(1)}])
    assert fitted.missing == ("norm.weight", "norm.bias")
    assert fitted.unexpected == ("extra.scale",)
    assert "stem.weight is [16, 3, 1, 1], not [4, 3, 1, 1]" in fitted.explanation()
    assert "2 missing (norm.weight, norm.bias); 1 unexpected (extra.scale)" in fitted.explanation()


def test_files_of_one_network_are_joined() -> None:
    names = list(STATE)
    halves = [{n: STATE[n] for n in names[:3]}, {n: STATE[n] for n in names[3:]}]
    assert not fit(TINY, "small", halves[:1]).exact
    assert fit(TINY, "small", halves).exact


def converted(
    folder: Path, checkpoint: dict[str, Any], variant: str | None = "small", **options: Any
) -> Any:
    return convert([checkpoint], TINY, variant, folder / "model.safetensors", **options)


def test_the_written_file_loads_strictly(tmp_path: Path) -> None:
    done = converted(tmp_path, {"model": STATE})
    network = TINY.network(TINY.config("small"))
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert (done.classes, done.warnings) == (3, ())
    assert done.parameters == sum(p.numel() for p in network.parameters())


def test_the_variant_is_found_and_its_twins_are_named(tmp_path: Path) -> None:
    done = converted(tmp_path, STATE, None)
    assert done.variant == "small"
    assert done.warnings == (
        "taken as tiny:small; its tensors also fit tiny:small-large-pictures, tiny:small-many",
    )
    assert converted(tmp_path, official_state(classes=21), None).variant == "small-many"
    assert converted(tmp_path, official_state(width=16), None).variant == "big"
    assert converted(tmp_path, official_state(width=2), None).variant == "demo"


def test_another_variant_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(WrongArchitecture, match=r"does not fit tiny:small: .* looks like tiny:big"):
        converted(tmp_path, official_state(width=16))
    assert list(tmp_path.iterdir()) == []


def test_another_architecture_is_recognised(tmp_path: Path) -> None:
    mtcnn = architecture("mtcnn")
    state = mtcnn.network(mtcnn.config("default")).state_dict()
    with pytest.raises(
        WrongArchitecture, match=r"missing .* unexpected .* looks like mtcnn:default"
    ):
        converted(tmp_path, {"model": state}, None)


@pytest.mark.parametrize("checkpoint", [{}, {"epoch": 3}, {"optimizer": {"lr": 0.1}}])
def test_a_checkpoint_without_tensors(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    with pytest.raises(WrongArchitecture, match="there are no tensors"):
        converted(tmp_path, checkpoint)


@pytest.mark.parametrize(
    ("given", "storage", "kept"),
    [
        (torch.float64, "keep", "F32"),
        (torch.float16, "keep", "F16"),
        (torch.bfloat16, "keep", "BF16"),
        (torch.float32, "float16", "F16"),
        (torch.float16, "float32", "F32"),
        (torch.float32, "bfloat16", "BF16"),
    ],
)
def test_precisions(tmp_path: Path, given: torch.dtype, storage: Any, kept: str) -> None:
    state = {n: t.to(given) if t.is_floating_point() else t for n, t in STATE.items()}
    converted(tmp_path, state, storage=storage)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_slice("head.weight").get_dtype() == kept
        assert file.get_slice("norm.num_batches_tracked").get_dtype() == "I64"


def test_values_that_float16_cannot_hold(tmp_path: Path) -> None:
    state = STATE | {"fc.bias": torch.full((3,), 1e5)}
    with pytest.raises(WeightsError, match=r"head\.bias has values beyond float16's 65504"):
        converted(tmp_path, state, storage="float16")
    converted(tmp_path, state, storage="bfloat16")


def test_values_that_are_not_finite_are_told(tmp_path: Path) -> None:
    state = STATE | {"fc.bias": torch.tensor([1.0, float("nan"), float("inf")])}
    (warning,) = converted(tmp_path, state).warnings
    assert "1 tensors hold values that are not finite (head.bias)" in warning


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    state = STATE | {
        "fc.weight": whole.t(),
        "bn.weight": whole[:, 0],
        "bn.bias": whole[:, 0],
    }
    converted(tmp_path, state)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["head.weight"], whole.t())
    assert torch.equal(found["norm.bias"], whole[:, 0])
