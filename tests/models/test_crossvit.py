"""CrossViT: the exchange between its branches, names of published checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.demo import shapes
from models.registry import architecture

CROSSVIT = architecture("crossvit")
GOLDEN = Path(__file__).parents[1] / "golden" / "crossvit-crossvit_tiny_224.json"

PARAMETERS = {
    "tiny": 7_014_800,
    "small": 26_856_272,
    "base": 105_025_232,
    "9": 8_553_296,
    "15": 27_528_464,
    "18": 43_271_408,
    "9-dagger": 8_776_592,
    "15-dagger": 28_209_008,
    "18-dagger": 44_266_976,
    "15-dagger-384": 28_500_080,
    "18-dagger-384": 44_606_560,
}


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = CROSSVIT.network(CROSSVIT.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts_are_the_published_ones(variant: str) -> None:
    assert _parameters(variant) == PARAMETERS[variant]


def test_every_published_file_has_one_variant() -> None:
    files = [s.url.rpartition("/")[2] for v in CROSSVIT.variants.values() for s in v.sources]
    assert sorted(files) == sorted(
        [
            *(f"crossvit_{name}_224.pth" for name in ("tiny", "small", "base", "9", "15", "18")),
            *(f"crossvit_{name}_dagger_224.pth" for name in ("9", "15", "18")),
            *(f"crossvit_{name}_dagger_384.pth" for name in ("15", "18")),
        ]
    )


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert CROSSVIT.variants["demo"].labels == shapes.LABELS


def test_pictures_have_the_size_of_the_small_patches() -> None:
    for name, variant in CROSSVIT.variants.items():
        if variant.demo:
            continue
        size, resize_to = (408, 408) if name.endswith("384") else (240, 274)
        image = variant.image
        assert image is not None
        assert (image.height, image.width, image.interpolation) == (size, size, "bicubic")
        assert (image.resize, image.resize_to) == ("shorter-side", resize_to)


def _demo(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    network = CROSSVIT.network(CROSSVIT.config("demo") | changes).eval()
    with torch.no_grad():
        # As initialised, all biases are 0 and all class tokens nearly so.
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def test_class_token_attends_to_the_other_branch_and_patches_stay() -> None:
    group = _demo().blocks[0]
    small, large = torch.randn(2, 65, 48), torch.randn(2, 17, 96)
    with torch.inference_mode():
        left = [group.blocks[0](small), group.blocks[1](large)]
        out = group([small, large])

        # By hand, for the small patches: one query in the large patches' width, three heads of 32.
        norm, _, linear = group.projs[0]
        token = linear(nn.functional.gelu(norm(left[0][:, 0])))
        cross = group.fusion[0]
        tokens = cross.norm1(torch.cat((token[:, None], left[1][:, 1:]), dim=1))
        query = cross.attn.wq(tokens[:, 0]).reshape(2, 3, 32)
        keys = cross.attn.wk(tokens).reshape(2, 17, 3, 32)
        values = cross.attn.wv(tokens).reshape(2, 17, 3, 32)
        weights = (torch.einsum("bhc,bnhc->bhn", query, keys) / 32**0.5).softmax(-1)
        met = torch.einsum("bhn,bnhc->bhc", weights, values).reshape(2, 96)
        norm, _, linear = group.revert_projs[0]
        expected = linear(nn.functional.gelu(norm(token + cross.attn.proj(met))))

    torch.testing.assert_close(out[0][:, 0], expected, atol=1e-5, rtol=1e-4)
    for branch in (0, 1):
        torch.testing.assert_close(out[branch][:, 1:], left[branch][:, 1:], atol=0, rtol=0)


def test_logits_of_the_branches_are_averaged() -> None:
    network = _demo()
    logits: list[torch.Tensor] = []
    for head in network.head:
        head.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
    with torch.inference_mode():
        answer = network(torch.randn(2, 3, 64, 64))
    assert len(logits) == 2
    torch.testing.assert_close(answer, (logits[0] + logits[1]) / 2)


def test_second_branch_sees_the_picture_scaled_down() -> None:
    network = _demo(image_sizes=(72, 64))
    seen: list[torch.Tensor] = []
    for embedding in network.patch_embed:
        embedding.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    image = torch.randn(1, 3, 72, 72)
    with torch.inference_mode():
        network(image)
    assert [tuple(x.shape[2:]) for x in seen] == [(72, 72), (64, 64)]
    torch.testing.assert_close(seen[0], image)
    small = nn.functional.interpolate(image, size=(64, 64), mode="bicubic", align_corners=False)
    torch.testing.assert_close(seen[1], small)


def test_official_names_become_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    config = CROSSVIT.config("tiny")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in CROSSVIT.network(config).state_dict().items()}
    for checkpoint in (official, {"model": official, "epoch": 299}):
        translated = CROSSVIT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted
    assert CROSSVIT.translate(translated, config).keys() == wanted.keys()
