"""UPerNet: against transformers' head, its windows, and that published variants fit together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

from models.registry import architecture
from models.segmentation._upernet import UPerHead, UPerNet, Windows

SEGMENTORS = [
    (slug, name)
    for slug in ("swin-segmentation", "convnext-segmentation", "vit-comer-segmentation")
    for name in architecture(slug).variants
]


def test_the_head_equals_transformers() -> None:
    dims = (8, 8, 16, 16)
    backbone = ConvNextConfig(
        hidden_sizes=list(dims), depths=[1] * 4, out_features=[f"stage{i}" for i in range(1, 5)]
    )
    theirs = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, hidden_size=12, num_labels=7)
    ).decode_head.eval()
    ours = UPerHead(dims, 12, 7).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    own, state = list(ours.state_dict().values()), theirs.state_dict()
    renamed = dict(zip(_in_order(ours), own, strict=True))
    order = _in_order(theirs)
    assert len(order) == len(state)
    theirs.load_state_dict({name: renamed[key] for key, name in zip(order, state, strict=True)})
    maps = [torch.randn(2, d, 24 // 2**i, 32 // 2**i) for i, d in enumerate(dims)]
    with torch.inference_mode():
        torch.testing.assert_close(ours(maps), theirs(maps), atol=1e-4, rtol=1e-4)


def _in_order(head: nn.Module) -> list[str]:
    """Return the head's entries by names that both implementations give them."""
    names = []
    for name in head.state_dict():
        for theirs, own in (
            ("psp_modules.blocks.", "psp_modules."),
            (".conv.convolution.", ".1.conv."),
            (".conv.normalization.", ".1.bn."),
            (".convolution.", ".conv."),
            (".batch_norm.", ".bn."),
            (".normalization.", ".bn."),
            ("classifier.", "conv_seg."),
        ):
            name = name.replace(theirs, own)
        names.append(name)
    return names


class Shade(nn.Module):
    """Says of each place how light it is, and of which corner of its window it is."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image[:, :1, ::4, ::4]] * 4


@pytest.mark.parametrize("size", [(64, 64), (64, 150), (130, 70), (20, 40)])
def test_windows_cover_a_picture_and_end_at_its_edges(size: tuple[int, int]) -> None:
    seen = torch.zeros(size)
    for rows, columns in Windows(64, 43).corners(*size):
        assert rows.stop - rows.start == min(64, size[0])
        assert columns.stop - columns.start == min(64, size[1])
        seen[rows, columns] += 1
    assert seen.min() >= 1
    assert list(Windows().corners(*size)) == [(slice(0, size[0]), slice(0, size[1]))]


def test_answers_to_windows_are_averaged() -> None:
    network = UPerNet(Shade(), (1, 1, 1, 1), 1, Windows(64, 43)).eval()
    network.decode_head = _First()  # type: ignore[assignment]
    image = torch.zeros(1, 3, 64, 107)
    image[..., 43:] = 1.0
    with torch.inference_mode():
        found = network.logits(image)
    assert found.shape == (1, 1, 64, 107)
    expected = torch.zeros(64, 107)
    counts = torch.zeros(64, 107)
    for columns in (slice(0, 64), slice(43, 107)):
        part = image[:, :1, ::4, columns][..., ::4]
        expected[:, columns] += F.interpolate(part, (64, 64), mode="bilinear")[0, 0]
        counts[:, columns] += 1
    torch.testing.assert_close(found[0, 0], expected / counts)


class _First(nn.Module):
    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return maps[0]


def test_sides_are_enlarged_to_multiples() -> None:
    network = UPerNet(Shade(), (1, 1, 1, 1), 1, Windows(64, 43, multiple_of=32)).eval()
    network.decode_head = _First()  # type: ignore[assignment]
    with torch.inference_mode():
        (logits,) = network.predict(torch.rand(1, 3, 50, 70), [0])
        assert logits.shape == (1, 64, 96)
        found = network.decide(logits, (50, 70))
    assert found.mask.shape == (50, 70)
    assert found.segments[0][:2] == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("slug", "name"), SEGMENTORS, ids=map(":".join, SEGMENTORS))
def test_every_published_segmentor_gives_logits_at_a_quarter(slug: str, name: str) -> None:
    made = architecture(slug)
    with torch.device("meta"), torch.inference_mode():
        logits = made.network(made.config(name)).eval()(torch.empty(1, 3, 64, 96))
    assert logits.shape == (1, len(made.variants[name].labels), 16, 24)
