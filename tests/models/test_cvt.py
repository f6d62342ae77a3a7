"""CvT: published sizes, the authors' names, and what its attention looks at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.registry import architecture

CVT = architecture("cvt")
GOLDEN = Path(__file__).parents[1] / "golden" / "cvt-cvt-13-224.json"


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("13-1k-224", 19_997_480), ("21-1k-384", 31_622_696), ("w24-22k-1k-384", 277_196_392)],
)
def test_parameter_counts_are_the_published_ones(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        network = CVT.network(CVT.config(variant))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_demo_network_is_small() -> None:
    network = CVT.network(CVT.config("demo"))
    assert sum(t.numel() for t in network.state_dict().values()) <= 524_288


def test_authors_names_become_the_networks_names() -> None:
    config = CVT.config("13-1k-224")
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    with torch.device("meta"):
        state = CVT.network(config).state_dict()
    wanted = {name: t.shape for name, t in state.items() if t.is_floating_point()}
    translated = CVT.translate(official, config)
    assert {name: t.shape for name, t in translated.items()} == wanted
    assert CVT.translate(translated, config).keys() == wanted.keys()
    counter = "stage1.blocks.0.attn.conv_proj_v.bn.num_batches_tracked"
    assert CVT.translate({counter: torch.tensor(5)}, config).keys() <= state.keys()


def test_activation_is_the_sigmoid_approximation_of_gelu() -> None:
    network = CVT.network(CVT.config("demo"))
    activation = network.cvt.encoder.stages[0].layers[0].intermediate.activation
    # 1 / (1 + exp(-1.702)); exact GELU gives 0.8413.
    torch.testing.assert_close(
        activation(torch.tensor([1.0, 0.0])), torch.tensor([0.84580, 0.0]), atol=1e-5, rtol=0
    )


def test_attention_of_a_map_by_hand() -> None:
    """Convolutions that keep the centre, equal keys: each token gets the mean of every second value."""
    network = CVT.network(CVT.config("demo")).eval()
    attention = network.cvt.encoder.stages[0].layers[0].attention
    inner, width = attention.attention, attention.attention.embed_dim
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        value = inner.convolution_projection_value.convolution_projection
        value.convolution.weight[:, :, 1, 1] = 1
        value.normalization.weight.fill_(1)
        inner.projection_value.weight.copy_(torch.eye(width))
        attention.output.dense.weight.copy_(torch.eye(width))
        tokens = torch.randn(2, 16, width)
        found = attention(tokens, 4, 4)
    kept = tokens.unflatten(1, (4, 4))[:, ::2, ::2].mean((1, 2))
    expected = kept[:, None].expand_as(tokens) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_pictures_are_cropped_at_224_and_squashed_at_384() -> None:
    small, large = (CVT.variants[name].image for name in ("13-1k-224", "13-22k-1k-384"))
    assert small is not None
    assert large is not None
    assert (small.resize, small.resize_to, small.height) == ("shorter-side", 256, 224)
    assert (large.resize, large.resize_to, large.height) == ("squash", None, 384)
    assert small.interpolation == large.interpolation == "bicubic"


def test_one_picture_keeps_its_batch_axis() -> None:
    network = CVT.network(CVT.config("demo")).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, CVT.config("demo")["num_classes"])
