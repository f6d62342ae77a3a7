"""DuoFormer: the order of tokens, both kinds of attention by hand, sizes and names of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from models.classification.duoformer import DuoTransformer, ResNet, tokens_of_patches
from models.registry import architecture
from tests.fidelity.golden import Golden

DUO = architecture("duoformer")
GOLDEN = Golden.read(Path(__file__).parents[1] / "golden" / "duoformer-r50-3scales-channel.json")


def _network(variant: str) -> torch.nn.Module:
    with torch.device("meta"):
        return DUO.network(DUO.config(variant))


def test_parameter_count_is_that_of_the_authors_code() -> None:
    count = sum(p.numel() for p in _network("r50-3scales-channel").parameters())
    assert count == 185_741_378


def test_demo_network_is_small() -> None:
    assert sum(t.numel() for t in _network("demo").state_dict().values()) <= 524_288


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        # Patch 1 is the right one of the upper row.
        (1, [1]),
        (2, [2, 6, 3, 7]),  # column by column
        (4, [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31]),  # row by row
    ],
)
def test_order_of_the_tokens_of_a_patch(side: int, expected: list[int]) -> None:
    picture = torch.arange((2 * side) ** 2).view(1, 1, 2 * side, 2 * side)
    tokens = tokens_of_patches(torch.cat((picture, -picture), dim=1), side)
    assert tokens.shape == (1, 4, side**2, 2)
    assert tokens[0, 1, :, 0].tolist() == expected
    assert tokens[0, 1, :, 1].tolist() == [-value for value in expected]


@pytest.mark.parametrize(
    ("variant", "tokens"), [("r50-3scales-random", 22), ("r18-4scales-random", 86)]
)
def test_each_patch_has_its_own_token_and_those_of_every_scale(variant: str, tokens: int) -> None:
    state = _network(variant).state_dict()
    assert state["vision_transformer.pos_embed_for_scale"].shape == (1, 1, tokens, 768)
    assert state["vision_transformer.pos_embed"].shape == (1, 50, 768)
    assert state["channel_token"].shape == (1, 1, 1, 768)


def _transformer(depth: int = 1) -> DuoTransformer:
    torch.manual_seed(0)
    return DuoTransformer(4, 6, dim=8, depth=depth, heads=2, mlp_ratio=2.0, classes=3).eval()


def test_scale_attention_stays_inside_a_patch() -> None:
    transformer = _transformer()
    seen: list[torch.Tensor] = []
    transformer.scaleBlocks.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.unflatten(0, (-1, 4)))
    )
    tokens = torch.randn(2, 4, 6, 8)
    changed = tokens.clone()
    changed[:, 2] += 1
    with torch.inference_mode():
        before, after = transformer(tokens), transformer(changed)
    kept = torch.tensor([True, True, False, True])
    torch.testing.assert_close(seen[0][:, kept], seen[1][:, kept])
    assert (seen[0][:, 2] - seen[1][:, 2]).abs().amax(dim=(0, 2)).min() > 1e-3
    # Only patch attention brings the news to the class token.
    assert (before - after).abs().max() > 1e-5


def test_patch_attention_is_attention_alone() -> None:
    transformer = _transformer()
    attention = transformer.blocks[0].attn
    x = torch.randn(1, 5, 8)
    with torch.inference_mode():
        q, k, v = attention.qkv(x)[0].split(8, dim=1)
        heads = [
            (q[:, part] @ k[:, part].T / 2).softmax(1) @ v[:, part]  # 4 ** 0.5
            for part in (slice(0, 4), slice(4, 8))
        ]
        expected = attention.proj(torch.cat(heads, dim=1))
        torch.testing.assert_close(transformer.blocks(x)[0], expected)


def test_head_reads_the_class_token_unnormalised() -> None:
    transformer = _transformer(depth=2)
    seen: list[torch.Tensor] = []
    transformer.blocks.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output[:, 0])
    )
    with torch.inference_mode():
        logits = transformer(torch.randn(2, 4, 6, 8))
        torch.testing.assert_close(logits, transformer.head(seen[0]))


def test_own_token_of_the_channels_sees_every_map() -> None:
    network = DUO.network(DUO.config("demo")).eval()
    sides = (16, 8, 4, 2)
    dims = network.resnet_projector.dims
    maps = [torch.rand(1, dim, side, side) for dim, side in zip(dims, sides, strict=True)]
    tokens = torch.zeros(1, 4, 21, 48)
    with torch.inference_mode():
        own = network._own(maps, tokens)
        assert own.shape == (1, 4, 1, 48)
        for level in range(4):
            others = [m + 1 if i == level else m for i, m in enumerate(maps)]
            assert (network._own(others, tokens) - own).abs().max() > 1e-4


def test_convolutions_are_torchvisions() -> None:
    reference = resnet18().eval()
    network = ResNet("basic", (2, 2, 2, 2), 64).eval()
    children = list(reference.children())[:8]
    network.load_state_dict(torch.nn.Sequential(*children).state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*children)(image)
        torch.testing.assert_close(network.maps(image)[3], expected)
    assert [tuple(m.shape[1:]) for m in network.maps(image)] == [
        *((64, 16, 16), (128, 8, 8)),
        *((256, 4, 4), (512, 2, 2)),
    ]


def test_checkpoints_of_either_resnet_are_translated() -> None:
    config = DUO.config("r50-3scales-channel")
    wanted = {
        name: value.shape
        for name, value in _network("r50-3scales-channel").state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    official = {name: torch.empty(shape, device="meta") for name, shape in GOLDEN.state}
    names = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    renamed = {}
    for name, value in official.items():
        head, _, rest = name.partition(".")
        if head == "resnet_projector":
            number, _, rest = rest.partition(".")
            name = f"{head}.{names[number]}.{rest}"
        renamed[name] = value
    for checkpoint in (
        {"epoch": 3, "model": official, "test_acc": [0.5]},
        {f"module.{name}": value for name, value in official.items()},
        {"model": renamed},
    ):
        translated = DUO.translate(checkpoint, config)
        assert {name: value.shape for name, value in translated.items()} == wanted


def test_pictures_are_tiles_of_224() -> None:
    for name, variant in DUO.variants.items():
        image = variant.image
        assert image is not None
        assert (image.height, image.width) == ((64, 64) if name == "demo" else (224, 224))
        assert image.resize == "squash"
        assert image.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match="multiple of 32"):
        DUO.network(DUO.config("demo") | {"image_size": 100})
