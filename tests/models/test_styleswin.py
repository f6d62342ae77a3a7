"""StyleSwin: double attention, truncation and mixing of styles, and the authors' files."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from models.generation.styleswin_network import (
    Block,
    StyleSwin,
    StyleSwinConfig,
    pixels,
    released_state,
)
from models.layers.stylegan import fir_kernel, upsampled
from models.weights.checkpoint import read_checkpoint

SMALL = StyleSwinConfig(size=8, style_dim=16, n_mlp=2)


@torch.inference_mode()
def test_second_half_of_the_heads_sees_across_the_first_halfs_windows() -> None:
    torch.manual_seed(0)
    block = Block(64, 16, 8, 16).eval()
    qkv = torch.randn(1, 16, 16, 3, 32)
    changed = qkv.clone()
    changed[:, 7, 7] += 1  # The last token of the first window.
    reached = {}
    for name, attend in (("plain", block._plain), ("shifted", block._shifted)):
        reached[name] = (attend(qkv) - attend(changed)).abs().sum(-1)[0] > 0
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:8, :8] = True
    assert torch.equal(reached["plain"], expected)
    assert torch.equal(reached["shifted"], expected.roll((4, 4), (0, 1)))
    # Tokens that only rolling brought together do not see each other: a corner sees 4 x 4 tokens.
    changed = qkv.clone()
    changed[:, 0, 0] += 1
    corner = (block._shifted(qkv) - block._shifted(changed)).abs().sum(-1)[0] > 1e-6
    assert corner[:4, :4].all()
    assert int(corner.sum()) == 16


@torch.inference_mode()
def test_styles_are_truncated_and_mixed() -> None:
    torch.manual_seed(0)
    network = StyleSwin(SMALL).eval()
    z = torch.randn(2, 16)
    mean = network.mean_style(seed=3, samples=64)
    assert torch.equal(mean, network.mean_style(seed=3, samples=64))
    with pytest.raises(ValueError, match="mean style"):
        network(z, 0.5)
    still = network(z, 0.0, mean)
    torch.testing.assert_close(still[0], still[1])
    torch.testing.assert_close(network(z, 1.0, mean), network.synthesis(network.style(z)))
    coarse, fine = network.style(z).unsqueeze(1).repeat(1, 4, 1).unbind(0)
    mixed = torch.cat([coarse[:2], fine[2:]]).unsqueeze(0)
    stages: list[torch.Tensor] = []
    network.layers[0].register_forward_hook(lambda _m, _i, result: stages.append(result))
    pictures = network.synthesis(torch.stack([mixed[0], coarse, fine]))
    torch.testing.assert_close(stages[0][0], stages[0][1])
    assert not torch.allclose(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2])


def test_filter_keeps_flat_pictures_and_pixels_undo_the_normalisation() -> None:
    flat = upsampled(torch.ones(1, 2, 6, 6), fir_kernel(gain=4))
    assert flat.shape == (1, 2, 12, 12)
    torch.testing.assert_close(flat[..., 2:-2, 2:-2], torch.ones(1, 2, 8, 8))
    grey = pixels(torch.zeros(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(grey, torch.tensor([0.485, 0.456, 0.406]))


def test_sizes_are_powers_of_two_and_known_widths() -> None:
    assert [StyleSwinConfig().width(r) for r in (4, 32, 64, 256)] == [512, 512, 512, 128]
    assert StyleSwinConfig(channel_multiplier=1).width(1024) == 16
    with pytest.raises(ValueError, match="48 is no power of two"):
        _ = StyleSwinConfig(size=48).resolutions


def test_released_file_loads(tmp_path: Path) -> None:
    network = StyleSwin(SMALL)
    averaged = network.state_dict() | {
        "layers.0.upsample.sin_pos_embed._float_tensor": torch.ones(1)
    }
    content = {"g": {}, "d": {}, "g_ema": averaged, "args": argparse.Namespace(size=8)}
    torch.save(content, tmp_path / "FFHQ_8.pt")
    network.load_state_dict(released_state(read_checkpoint(tmp_path / "FFHQ_8.pt")))
