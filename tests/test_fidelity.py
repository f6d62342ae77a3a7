"""The networks against the golden files in `tests/golden`, and the checker itself."""

from __future__ import annotations

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fidelity import golden as golden_module
from tests.fidelity.__main__ import main
from tests.fidelity.cases import NoCase, case
from tests.fidelity.comparison import compare
from tests.fidelity.golden import Golden, Record, entry

GOLDEN = Path(__file__).parent / "golden"
LARGE = 100_000_000


def _files() -> list[object]:
    files: list[object] = []
    for path in sorted(GOLDEN.glob("*.json")):
        values = sum(math.prod(shape) for _, shape in Golden.read(path).state)
        marks = (pytest.mark.slow, pytest.mark.timeout(900)) if values > LARGE else ()
        files.append(pytest.param(path, id=path.stem, marks=marks))
    return files


@pytest.mark.parametrize("path", _files())
def test_network_equals_the_reference(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(path)])
    line = capsys.readouterr().out
    golden = Golden.read(path)
    assert re.fullmatch(rf"{golden.slug} {re.escape(golden.variant)} \S+ PASS\n", line), line
    assert float(line.split()[-2]) < 2e-4
    assert status == 0


def _small(tmp_path: Path, **changes: object) -> Path:
    """Write a golden file of a small isotropic ConvNeXt, recorded from a network written out below."""
    dim, classes = 8, 5
    shapes = {
        "stem.weight": (dim, 3, 16, 16),
        "stem.bias": (dim,),
        "blocks.0.dwconv.weight": (dim, 1, 7, 7),
        "blocks.0.dwconv.bias": (dim,),
        "blocks.0.norm.weight": (dim,),
        "blocks.0.norm.bias": (dim,),
        "blocks.0.pwconv1.weight": (4 * dim, dim),
        "blocks.0.pwconv1.bias": (4 * dim,),
        "blocks.0.pwconv2.weight": (dim, 4 * dim),
        "blocks.0.pwconv2.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "head.weight": (classes, dim),
        "head.bias": (classes,),
    }
    w = {name: entry(name, shape).double() for name, shape in shapes.items()}
    image = torch.from_numpy(np.random.RandomState(5).standard_normal((2, 3, 48, 64))).double()
    image = image.float().double()
    f = torch.nn.functional
    stem = f.conv2d(image, w["stem.weight"], w["stem.bias"], stride=16)
    x = f.conv2d(
        stem, w["blocks.0.dwconv.weight"], w["blocks.0.dwconv.bias"], padding=3, groups=dim
    )
    x = x.permute(0, 2, 3, 1)
    x = f.layer_norm(x, (dim,), w["blocks.0.norm.weight"], w["blocks.0.norm.bias"], 1e-6)
    x = f.gelu(f.linear(x, w["blocks.0.pwconv1.weight"], w["blocks.0.pwconv1.bias"]))
    x = f.linear(x, w["blocks.0.pwconv2.weight"], w["blocks.0.pwconv2.bias"])
    x = stem + x.permute(0, 3, 1, 2)
    features = f.layer_norm(x.mean((2, 3)), (dim,), w["norm.weight"], w["norm.bias"], 1e-6)
    logits = f.linear(features, w["head.weight"], w["head.bias"])

    def record(tensor: torch.Tensor) -> dict[str, object]:
        return {
            "shape": list(tensor.shape),
            "mean": tensor.mean().item(),
            "std": tensor.std(unbiased=False).item(),
            "stride": 1,
            "sample": tensor.flatten().tolist(),
        }

    content: dict[str, object] = {
        "seed": "convnext",
        "variant": "small",
        "config": {},
        "state": [[name, list(shape)] for name, shape in shapes.items()],
        "inputs": {"image": {"seed": 5, "shape": [2, 3, 48, 64], "distribution": "normal"}},
        "outputs": {
            "stem": record(stem),
            "block0": record(x),
            "features": record(features),
            "logits": record(logits),
        },
        "notes": "",
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_isotropic_network_equals_its_definition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(_small(tmp_path))]) == 0
    assert re.fullmatch(r"convnext small \S+ PASS\n", capsys.readouterr().out)


def test_difference_is_named_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(_small(tmp_path).read_text())
    outputs = content["outputs"]
    outputs["features"]["sample"][3] += 0.01 * outputs["features"]["std"]
    path = _small(tmp_path, outputs=outputs)
    assert main([str(path), str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["convnext small 0.01 FAIL features"] * 2


def test_unknown_paper_fails_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = _small(tmp_path)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(json.loads(good.read_text()) | {"seed": "no-such-paper"}))
    assert main([str(bad), str(good)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("no-such-paper small inf FAIL NoCase")
    assert second.endswith("PASS")
    with pytest.raises(NoCase, match="no-such-paper"):
        case("no-such-paper")


def test_surplus_weight_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = [*json.loads(_small(tmp_path).read_text())["state"], ["blocks.0.extra", [3]]]
    assert main([str(_small(tmp_path, state=state))]) == 1
    assert "blocks.0.extra" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "worst"),
    [
        ({}, math.inf),
        ({"x": torch.zeros(2, 3)}, math.inf),
        ({"x": torch.tensor([0.0, math.nan, 0.0])}, math.inf),
        ({"x": torch.tensor([0.0, 9.0, 0.5])}, 0.25),
        ({"x": torch.tensor([0.0, 9.0, 0.0])}, 0.0),
    ],
)
def test_comparison(output: dict[str, torch.Tensor], worst: float) -> None:
    record = Record((3,), std=2.0, stride=2, sample=np.zeros(2))
    result = compare(Golden("s", "v", {}, (), {}, {"x": record}, ""), output)
    assert result.worst == worst
    assert result.passed == (worst == 0)


@pytest.mark.parametrize(
    ("name", "shape", "rule"),
    [
        ("a.running_var", (5,), lambda n: 1 + 0.1 * abs(n)),
        ("a.running_mean", (5,), lambda n: 0.1 * n),
        ("a.bias", (5,), lambda n: 0.1 * n),
        ("q_bias", (5,), lambda n: 0.1 * n),
        ("gamma", (5,), lambda n: 1 + 0.1 * n),
        ("scale", (), lambda n: 1 + 0.1 * n),
        ("a.weight", (3, 4, 2), lambda n: n / math.sqrt(8)),
        ("relative_bias", (3, 4), lambda n: 0.5 * n),
        ("pos_embed", (1, 4, 2), lambda n: 0.5 * n),
    ],
)
def test_values_of_entries(name: str, shape: tuple[int, ...], rule) -> None:
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    value = entry(name, shape)
    assert value.dtype is torch.float32
    np.testing.assert_allclose(value.numpy(), rule(noise), rtol=2e-6, atol=1e-7)


def test_drawing_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = entry("a.weight", (37, 5))
    monkeypatch.setattr(golden_module, "PIECE", 7)
    assert torch.equal(entry("a.weight", (37, 5)), whole)
