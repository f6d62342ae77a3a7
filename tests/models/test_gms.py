"""GMS: the latent mapping, names of published checkpoints of both networks, probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.diffusion.autoencoder import current_name
from models.registry import architecture
from models.segmentation.gms import LatentMapping, SpatialAttention, probabilities

PAPER = architecture("gms")
GOLDEN = Path(__file__).parents[1] / "golden" / "gms-pipeline.json"
PREFIXES = ("mapping_model.", "vae_model.")


def shapes_of(variant: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = PAPER.network(PAPER.config(variant))
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def official(prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
        if name.startswith(prefix)
    }


def test_sizes_of_both_networks() -> None:
    with torch.device("meta"):
        network = PAPER.network(PAPER.config("bus"))
    counts = [sum(p.numel() for p in part.parameters()) for part in network.children()]
    assert sorted(counts) == [1_564_976, 83_653_863]
    with torch.device("meta"):
        demo = PAPER.network(PAPER.config("demo"))
    # One MB in half precision.
    assert sum(p.numel() for p in demo.parameters()) <= 500_000


def test_published_files_of_both_networks_are_the_whole() -> None:
    config = PAPER.config("bus")
    mapping, autoencoder = (official(prefix) for prefix in PREFIXES)
    found = PAPER.translate({"model": mapping, "epoch": 300}, config)
    found |= PAPER.translate({"state_dict": autoencoder}, config)
    assert {name: tensor.shape for name, tensor in found.items()} == shapes_of("bus")


def test_autoencoders_of_diffusers_old_and_new() -> None:
    config, wanted = PAPER.config("bus"), shapes_of("bus")
    new = {
        name.removeprefix("vae_model."): torch.empty(shape, device="meta")
        for name, shape in wanted.items()
        if name.startswith("vae_model.")
    }
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in new.items():
        for present, past in renamed.items():
            name = name.replace(f".{present}.", f".{past}.")
        assert current_name(name) in new
        old[name] = tensor
    assert old.keys() != new.keys()
    for checkpoint in (new, old):
        found = PAPER.translate(checkpoint, config)
        assert found.keys() == {name for name in wanted if name.startswith("vae_model.")}


@torch.no_grad()
def test_attention_of_every_position_to_all_by_hand() -> None:
    torch.manual_seed(0)
    attention = SpatialAttention(16).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    normed = attention.norm(x)
    q, k, v = (f(normed).flatten(2) for f in (attention.q, attention.k, attention.v))
    weights = (torch.einsum("bci,bcj->bij", q, k) / 4).softmax(2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).unflatten(2, (3, 5))
    torch.testing.assert_close(attention(x), x + attention.proj_out(mixed))


@pytest.mark.parametrize("size", [(4, 4), (7, 3)])
@torch.no_grad()
def test_a_mask_s_latent_has_the_picture_s_size(size: tuple[int, int]) -> None:
    mapping = LatentMapping(in_channels=4, out_channels=4, ch=16, ch_mult=(1, 1, 2, 2)).eval()
    levels = mapping.levels(torch.randn(2, 4, *size))
    assert [level.shape for level in levels] == [(2, 4, *size)] * 4


def test_probabilities_by_hand() -> None:
    # Black is no, white is yes; the channels' mean counts, and what is beyond is cut.
    decoded = torch.tensor([[-1.0, 1.0, 0.5], [-1.0, 1.0, 0.5], [-1.0, 4.0, -0.4]])
    found = probabilities(decoded[None, :, None, :])
    torch.testing.assert_close(found, torch.tensor([[[0.0, 1.0, 0.6]]]))


def test_every_published_checkpoint_has_one_variant() -> None:
    published = {n: v for n, v in PAPER.variants.items() if not v.demo}
    assert published.keys() == {"bus", "busi", "glas", "ham10000", "kvasir-instrument"}
    for name, variant in published.items():
        mapping, autoencoder = variant.sources
        assert f"/valid_{name}/" in mapping.url
        assert autoencoder.url.startswith("hf://stabilityai/stable-diffusion-2/")
        image = variant.image
        assert image is not None
        assert (image.height, image.resize, image.interpolation) == (224, "squash", "linear")
