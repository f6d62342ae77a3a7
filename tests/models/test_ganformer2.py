"""GANformer: what local and global latents reach, the seeds of its noise, and the authors' files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models.generation.ganformer2_network import GANformer, GANformerConfig, released_state
from models.weights.checkpoint import read_checkpoint

SMALL = GANformerConfig(
    resolution=8, k=4, z_dim=8, mapping_layers=2, channel_base=64, channel_max=16
)


def _network(**changes: object) -> GANformer:
    torch.manual_seed(0)
    return GANformer(dataclasses.replace(SMALL, **changes)).eval()


@torch.inference_mode()
def test_a_local_latent_changes_the_places_that_attend_to_it() -> None:
    network = _network()
    layer = network.synthesis.b8.conv1
    layer.noise_strength.zero_()
    x, latents = torch.randn(1, 8, 8, 8), torch.randn(1, 4, 8)
    # The first latent is nobody's, except for the left half of the grid.
    attention = torch.full((1, 64, 3), 0.5)
    attention[..., 0] = 0
    attention.view(1, 8, 8, 3)[:, :, :4] = torch.tensor([1.0, 0.0, 0.0])
    transformer = layer.transformer
    transformer.forward = lambda elements, to, *_: (
        transformer._integrated(
            transformer._normalised(elements),
            transformer.modulation(attention @ transformer.to_values(to)),
        ),
        attention,
    )
    changed = latents.clone()
    changed[:, 0] += 1
    before, shown = layer(x, latents, network.positions, None)
    after, _ = layer(x, changed, network.positions, None)
    differs = (before - after).abs().sum(1)[0] > 0
    assert differs[:, :4].all()
    assert not differs[:, 4:].any()
    assert shown.shape == (1, 3, 8, 8)


@torch.inference_mode()
def test_duplex_attention_looks_at_centroids_and_simplex_at_latents() -> None:
    x, latents = torch.randn(1, 16, 8), torch.randn(1, 3, 8)
    for duplex in (True, False):
        network = _network(kmeans=duplex)
        layer = network.synthesis.b8.conv1
        places = layer.grid_pos[:4, :4].flatten(0, 1)
        _, one = layer.transformer(x, latents, places, network.positions)
        _, other = layer.transformer(x, 2 * latents, places, network.positions)
        assert torch.equal(one, other) == duplex
        torch.testing.assert_close(one.sum(-1), torch.ones(1, 16))


@torch.inference_mode()
@pytest.mark.parametrize("style", [True, False])
def test_style_of_the_global_latent_and_truncation(style: bool) -> None:
    network = _network(style=style)
    ws = network.styles(torch.randn(2, 4, 8), truncation=1.0)
    other = ws.clone()
    other[:, -1] += 1
    painted = network.paint(ws)
    assert torch.allclose(painted.pictures, network.paint(other).pictures) != style
    assert painted.attention_maps().shape == (2, 3, 3, 1, 8, 8)
    still = network.styles(torch.randn(2, 4, 8), truncation=0.0)
    assert torch.equal(still, network.mapping.w_avg.expand_as(still))


@torch.inference_mode()
def test_noise_depends_on_the_samples_own_seed() -> None:
    network = _network()
    for layer in network.synthesis.layers:
        layer.noise_strength.fill_(1)
    z = torch.randn(1, 4, 8).repeat(2, 1, 1)
    both = network(z, noise=network.synthesis.random_noise([5, 6]))
    alone = network(z[1:], noise=network.synthesis.random_noise([6]))
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(both[0], both[1])


def test_released_state_loads(tmp_path: Path) -> None:
    network = _network()
    unused = {f"synthesis.b4.{name}resample_kernel": torch.ones(4, 4) for name in ("", "conv1.")}
    torch.save({"Gs": network.state_dict() | unused}, tmp_path / "clevr.pt")
    network.load_state_dict(released_state(read_checkpoint(tmp_path / "clevr.pt")))
    with pytest.raises(ValueError, match="24 is no power of two"):
        _ = GANformerConfig(resolution=24).resolutions
