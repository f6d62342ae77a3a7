"""TRF-SG2IM: messages along edges, a graph's positions, layouts as tokens, seeded drawing, and the files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from models.generation.trf_sg2im_network import (
    EdgeAttention,
    GPTConfig,
    GraphConfig,
    TrfSg2Im,
    VQConfig,
    released_state,
    taming_to_diffusers,
)
from models.generation.trf_sg2im_sampling import Graph, draw, layout_tokens, sample_codes
from models.weights.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def network() -> TrfSg2Im:
    torch.manual_seed(0)
    return TrfSg2Im(
        GraphConfig(n_objs=6, n_rels=3, emb_size=16, n_heads=2, n_enc_layers=1, pos_enc_dim=4),
        GPTConfig(vocab_size=32, block_size=96, n_layer=2, n_head=2, emb_size=16),
        VQConfig(
            emb_size=32,
            embed_dim=4,
            z_channels=4,
            resolution=4,
            ch=32,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(2,),
        ),
    ).eval()


@torch.inference_mode()
def test_messages_flow_along_edges_only() -> None:
    torch.manual_seed(0)
    attention = EdgeAttention(8, 2)
    nodes, edges = torch.randn(3, 8), torch.randn(2, 8)
    ends = torch.tensor([[0, 1], [1, 2]])  # 0 -> 1 -> 2
    before, _ = attention(nodes, edges, ends)
    assert torch.equal(before[0], torch.zeros(8))
    # With one edge in, its weight cancels: what arrives is the source's value.
    torch.testing.assert_close(before[1], attention.V(nodes[0]), rtol=1e-3, atol=1e-4)
    changed = nodes.clone()
    changed[2] += 1
    after, kept = attention(changed, edges, ends)
    torch.testing.assert_close(after[:2], before[:2])
    _, doubled = attention(changed, 2 * edges, ends)
    torch.testing.assert_close(doubled, 2 * kept)


def test_positions_are_eigenvectors_of_the_directed_laplacian() -> None:
    graph = Graph.of([3, 4], [(0, 1, 1), (1, 1, 0)], image=5, in_image=2)
    assert graph.objects.tolist() == [3, 4, 5]
    assert graph.ends.tolist() == [[0, 1, 0, 1], [1, 0, 2, 2]]
    positions = graph.positions(4)
    # Eigenvalues 0, 1 and 2; the first is left out, and there is no fourth or fifth.
    second = positions[:, 1]
    torch.testing.assert_close(second[:2].abs(), torch.full((2,), math.sqrt(0.5)))
    torch.testing.assert_close(second[0], -second[1])
    first = torch.tensor([0.5, 0.5, math.sqrt(0.5)])
    torch.testing.assert_close(positions[:, 0].abs(), first)
    assert positions[0, 0] * positions[2, 0] < 0
    assert not positions[:, 2:].any()


@pytest.mark.parametrize("triple", [(0, 1, 0), (0, 1, 2), (-1, 1, 0)])
def test_relations_join_two_objects_that_there_are(triple: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no relation can lead"):
        Graph.of([3, 4], [triple], image=5, in_image=2)


def test_number_of_objects_is_limited() -> None:
    for count in (0, 30):
        with pytest.raises(ValueError, match="there must be 1 to 29"):
            Graph.of([1] * count, [], image=5, in_image=2)


def test_layout_is_classes_and_corners_then_the_whole_picture() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.24, 0.5, 2.0, -1.0]]])
    tokens = layout_tokens(torch.tensor([[7, 9]]), boxes, torch.tensor([[1, 0]]), vocabulary=30)
    # A grid of 5 x 5: (0.24, 0.5) is cell (1, 2); what lies outside is drawn to the edge.
    assert tokens[0, :6].tolist() == [9, 11, 4, 7, 0, 24]
    assert tokens[0, 6:].tolist() == [29] * 84 + [0, 24]


@torch.inference_mode()
def test_cached_sampling_follows_the_likeliest(network: TrfSg2Im) -> None:
    layout = torch.randint(32, (2, 92), generator=torch.Generator().manual_seed(1))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    codes = sample_codes(network.img_trf, layout, 4, generators, top_k=1)
    tokens = layout
    for _ in range(4):
        logits, _ = network.img_trf(tokens)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(codes, tokens[:, 92:])
    with pytest.raises(ValueError, match="97 tokens do not fit into 96"):
        network.img_trf(torch.zeros(1, 97, dtype=torch.int64))


@torch.inference_mode()
def test_drawing_depends_on_the_samples_own_seed(network: TrfSg2Im) -> None:
    graph = Graph.of([0, 1, 2], [(0, 0, 1), (1, 1, 2)], image=5, in_image=2)
    steps: list[int] = []
    both = draw(network, graph, [3, 4], on_step=steps.append)
    assert steps == [0, 1, 2, 3]
    assert both.layout.boxes.shape == (2, 4, 4)
    alone = draw(network, graph, [4])
    assert torch.equal(both.codes[1:], alone.codes)
    torch.testing.assert_close(both.layout.boxes[1:], alone.layout.boxes)
    assert not torch.equal(both.codes[0], both.codes[1])
    assert network.paint(both.codes).shape == (2, 3, 4, 4)


def test_authors_files_load(network: TrfSg2Im, tmp_path: Path) -> None:
    state = network.state_dict()
    parts = {
        part: {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        for part in ("sgtrf", "img_trf")
    }
    parts["img_trf"]["blocks.0.attn.mask"] = torch.ones(1, 1, 96, 96)
    torch.save({"epoch": 3, **parts, "optimizer": {"state": {}}}, tmp_path / "both.pt")
    vqgan = {k: v for k, v in state.items() if k.startswith("vqvae.")}
    network.load_state_dict(released_state(read_checkpoint(tmp_path / "both.pt")) | vqgan)


def test_vqgan_names_and_matrices() -> None:
    renamed = taming_to_diffusers(
        {
            "decoder.up.4.attn.0.proj_out.weight": torch.zeros(8, 8, 1, 1),
            "decoder.up.1.upsample.conv.bias": torch.zeros(8),
            "encoder.mid.attn_1.norm.weight": torch.zeros(8),
            "encoder.down.2.block.0.nin_shortcut.weight": torch.zeros(8, 4, 1, 1),
            "loss.logvar": torch.zeros(1),
        }
    )
    assert {name: tuple(value.shape) for name, value in renamed.items()} == {
        "decoder.up_blocks.0.attentions.0.to_out.0.weight": (8, 8),
        "decoder.up_blocks.3.upsamplers.0.conv.bias": (8,),
        "encoder.mid_block.attentions.0.group_norm.weight": (8,),
        "encoder.down_blocks.2.resnets.0.conv_shortcut.weight": (8, 4, 1, 1),
    }
