"""ENAT: what each step computes and reuses, the order of revealing, and the tokenizer's odd shortcut."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from models.generation import enat_network, enat_tokenizer
from models.generation.enat_network import ENAT, ENATConfig
from models.generation.enat_sampling import Schedule, sample, seeded
from models.generation.enat_tokenizer import ResidualBlock, Tokenizer, TokenizerConfig
from models.weights.checkpoint import read_checkpoint

SMALL = ENATConfig(
    latent_size=4,
    embed_dim=32,
    num_heads=2,
    encoder_depth=2,
    decoder_depth=1,
    codebook_size=16,
    num_classes=3,
)


@pytest.fixture
def network() -> ENAT:
    torch.manual_seed(0)
    return ENAT(SMALL).eval()


@torch.inference_mode()
def test_encoder_sees_only_what_was_revealed_since(network: ENAT) -> None:
    ids = torch.arange(16).repeat(2, 1)
    label = torch.tensor([0, 2])
    seen: list[tuple[int, int]] = []
    for block in network.blocks:
        block.register_forward_pre_hook(
            lambda _module, inputs: seen.append(
                (inputs[0].shape[1], 0 if inputs[2] is None else inputs[2].shape[1])
            )
        )
    _, state = network(ids.masked_fill(ids > 4, 16), label)
    assert seen == [(5, 0), (5, 0), (11, 5)]
    seen.clear()
    logits, state = network(ids.masked_fill(ids > 8, 16), label, state)
    assert seen == [(4, 5), (4, 5), (7, 9)]
    assert logits.shape == (2, 16, 16)
    changed = enat_network.Reusable(state.features + 1, state.masked)
    after, _ = network(ids, label, changed)
    again, _ = network(ids, label, state)
    assert not torch.allclose(after, again)
    ids[0, 0] = 16
    with pytest.raises(ValueError, match="same number of masked"):
        network(ids, label)


@torch.inference_mode()
def test_sampling_reveals_by_the_cosine_and_keeps_what_is_visible(network: ENAT) -> None:
    schedule = Schedule(steps=4, sampling_temperature=60.0)
    shown: list[torch.Tensor] = []
    labels = torch.tensor([0, 1])
    codes = sample(
        network, labels, schedule, seeded(network, [7, 8]), lambda _, ids: shown.append(ids.clone())
    )
    assert [int((ids[0] == 16).sum()) for ids in shown] == [14, 11, 6, 0]
    for before, after in itertools.pairwise(shown):
        visible = before != 16
        assert torch.equal(before[visible], after[visible])
    assert codes.shape == (2, 4, 4)
    assert int(codes.max()) < 16
    alone = sample(network, labels[1:], schedule, seeded(network, [8]))
    assert torch.equal(alone, codes[1:])
    other = sample(network, labels[1:], schedule, seeded(network, [9]))
    assert not torch.equal(other, codes[1:])


def test_input_of_a_widening_block_does_not_get_through() -> None:
    x = torch.randn(1, 32, 4, 4)
    for outer, expected in ((64, torch.zeros(1, 64, 4, 4)), (32, x)):
        block = ResidualBlock(32, outer)
        torch.nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), expected)


@torch.inference_mode()
def test_released_files_load(network: ENAT, tmp_path: Path) -> None:
    unused = {"prev_embedder.fc1.weight": torch.zeros(2, 2)}
    torch.save(network.state_dict() | unused, tmp_path / "nnet_ema.pth")
    network.load_state_dict(enat_network.released_state(read_checkpoint(tmp_path / "nnet_ema.pth")))
    tokenizer = Tokenizer(
        TokenizerConfig(embed_dim=8, z_channels=8, n_embed=16, ch=32, ch_mult=(1, 2)),
    )
    state = {"state_dict": tokenizer.state_dict() | {"loss.weight": torch.zeros(1)}}
    torch.save(state, tmp_path / "vqgan.ckpt")
    tokenizer.load_state_dict(
        enat_tokenizer.released_state(read_checkpoint(tmp_path / "vqgan.ckpt"))
    )
    codes = torch.arange(16).view(1, 4, 4)
    assert torch.equal(tokenizer.quantize.nearest(tokenizer.quantize(codes)), codes)
    assert tokenizer(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)
