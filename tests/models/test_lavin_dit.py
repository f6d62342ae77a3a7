"""LaVin-DiT: the examples decide the answer, where guidance and positions come in, the knots, and the VAE's frames."""

from __future__ import annotations

import itertools

import pytest
import torch

from models.generation.lavin_dit_network import LaVinDiT, LaVinDiTConfig
from models.generation.lavin_dit_sampling import guided_velocity, knots, sample, without_examples
from models.generation.lavin_dit_vae import SpatioTemporalVAE


@torch.inference_mode()
def test_answer_depends_on_the_examples_their_order_and_the_guidance() -> None:
    torch.manual_seed(0)
    network = LaVinDiT(LaVinDiTConfig(hidden_size=48, depth=2, num_heads=4, kv_group=2)).eval()
    cond, noise = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 16, 1, 4, 6)
    time = torch.full((2,), 0.3)
    velocity = network(noise, time, cond)
    assert velocity.shape == noise.shape
    # Positions count the pictures, so an example read backwards is another example.
    for other in (cond[:, :, [1, 0, 2]], torch.cat([cond[:, :, :2].flip(3), cond[:, :, 2:]], 2)):
        assert not torch.allclose(network(noise, time, other), velocity, atol=1e-4)
    plain = network(noise, time, without_examples(cond))
    unguided, none = (guided_velocity(network, noise, time, cond, g) for g in (1.0, 0.0))
    torch.testing.assert_close(unguided, velocity)
    torch.testing.assert_close(none, plain)
    seen: list[int] = []
    together = sample(network, noise, cond, times=knots(4), on_step=lambda i, _: seen.append(i))
    alone = sample(network, noise[1:], cond[1:], times=knots(4))
    torch.testing.assert_close(together[1:], alone)
    assert seen == [0, 1, 2]
    with pytest.raises(ValueError, match="patches of 2 x 2"):
        network(noise[..., :5], time, cond[..., :5])


def test_knots_are_the_published_ones() -> None:
    assert knots(20)[7:12] == (0.0389, 0.0444, 0.05, 0.0524, 0.073)
    assert knots(30)[14:18] == (0.05, 0.0511, 0.06, 0.0779)
    assert knots(40)[19:23] == (0.05, 0.0506, 0.0555, 0.0655)
    assert knots(40)[-3:] == (0.815, 0.905, 1.0)
    assert all(now < then for now, then in itertools.pairwise(knots(30)))
    with pytest.raises(ValueError, match="even number"):
        knots(21)


@torch.inference_mode()
def test_vae_keeps_the_first_frame_for_itself() -> None:
    torch.manual_seed(0)
    vae = SpatioTemporalVAE((32, 32, 32, 32), layers_per_block=1, latent_channels=4).eval()
    for frames, coded in ((1, 1), (5, 2), (13, 4)):
        clip = torch.rand(1, 3, frames, 16, 8) * 2 - 1
        latents = vae.encode(clip)
        assert latents.shape == (1, 4, coded, 2, 1)
        assert vae.decode(latents).shape == clip.shape
