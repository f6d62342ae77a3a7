"""ViTok-v2: sizes, the code, positions, places that are not used, names of published checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.reconstruction._vitok_network import TowerConfig, ViTok, ViTokConfig
from models.reconstruction._vitok_patches import patchify, unpatchify
from models.weights.checkpoint import read_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = ViTokConfig(TowerConfig(32, 1, 2), TowerConfig(48, 2, 2), patch=4, channels=6)


@pytest.fixture
def network() -> ViTok:
    torch.manual_seed(0)
    network = ViTok(SMALL).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    return network


@pytest.mark.parametrize(
    ("name", "encoder", "total"),
    [
        ("Ld4-Ld24/1x16x16", 51.3, 354.5),
        ("Td4-T/1x16x16", 456, 4994),
        ("Td4-T/1x32x128", 463, 5009),
    ],
)
def test_sizes_are_the_published_ones(name: str, encoder: float, total: float) -> None:
    with torch.device("meta"):
        network = ViTok(ViTokConfig.parse(name))
    counts = {n: p.numel() / 1e6 for n, p in network.named_parameters()}
    first = ("patch_embed.", "encoder_blocks.", "to_code.")
    assert sum(c for n, c in counts.items() if n.startswith(first)) == pytest.approx(
        encoder, abs=0.5
    )
    assert sum(counts.values()) == pytest.approx(total, abs=0.5)


def test_names_may_change_every_size() -> None:
    config = ViTokConfig.parse("Bd2w96h3m4-E/1x8x4")
    assert config == ViTokConfig(TowerConfig(96, 2, 3, 4.0), TowerConfig(4096, 48, 32), 8, 4)
    for wrong in ("Bd2", "Xd2-B/1x16x4", "B-B/4x16x4"):
        with pytest.raises(ValueError, match=wrong.split("/")[0].split("-")[0]):
            ViTokConfig.parse(wrong)


def test_pictures_of_any_size_come_back_from_their_patches() -> None:
    image = torch.randn(2, 3, 10, 7)
    patches = patchify(image, 4, places=9)
    assert patches.tokens.shape == (2, 9, 48)
    assert patches.used.sum(1).tolist() == [6, 6]
    assert torch.equal(patches.tokens[0, 3].view(3, 4, 4)[:, :, :3], image[0, :, 4:8, 4:7])
    assert torch.equal(unpatchify(patches, 4, (10, 7)), image)
    with pytest.raises(ValueError, match="7x10 pixels make 6 patches of 4, more than 5"):
        patchify(image, 4, places=5)


@torch.inference_mode()
def test_places_that_are_not_used_change_nothing(network: ViTok) -> None:
    image = torch.randn(1, 3, 8, 12)
    exact = network(patchify(image, 4)).tokens
    spare = network(patchify(image, 4, places=11)).tokens
    torch.testing.assert_close(spare[:, :6], exact)
    assert spare.isfinite().all()


@torch.inference_mode()
def test_the_code_is_normalised_and_not_drawn(network: ViTok) -> None:
    patches = patchify(torch.randn(2, 3, 8, 8), 4)
    codes = network.encode(patches).tokens
    assert codes.shape == (2, 4, 6)
    torch.testing.assert_close(codes.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes.var(-1, unbiased=False), torch.ones(2, 4), atol=1e-3, rtol=0)
    assert torch.equal(codes, network.encode(patches).tokens)


@torch.inference_mode()
def test_only_distances_between_patches_count(network: ViTok) -> None:
    patches = patchify(torch.randn(1, 3, 8, 12), 4)
    codes = network.encode(patches).tokens
    moved = replace(patches, rows=patches.rows + 5, columns=patches.columns + 3)
    torch.testing.assert_close(network.encode(moved).tokens, codes, atol=1e-4, rtol=1e-4)
    turned = replace(patches, rows=patches.columns, columns=patches.rows)
    assert (network.encode(turned).tokens - codes).abs().max() > 1e-3


def test_both_halves_of_a_published_checkpoint_make_the_network(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "vitok-v2-Bd2-Bd4-f16x32.json").read_text())
    official = {name: torch.zeros(shape) for name, shape in golden["state"]}
    assert len(official) == 56
    first = ("patch_embed.", "encoder_blocks.", "to_code.")
    halves = {"encoder": {}, "decoder": {}}
    for name, tensor in official.items():
        halves["encoder" if name.startswith(first) else "decoder"][name] = tensor
    joined = {}
    for half, tensors in halves.items():
        save_file(tensors, tmp_path / f"{half}.safetensors")
        joined |= read_checkpoint(tmp_path / f"{half}.safetensors")
    with torch.device("meta"):
        network = ViTok(ViTokConfig.parse(golden["config"]["variant"]))
    network.load_state_dict(joined, assign=True)
