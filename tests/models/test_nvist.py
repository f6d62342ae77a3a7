"""NViST: size, the field and what rays see of it, the camera's part, names of the authors' checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.views._nvist_network import NViST, NViSTConfig, published
from models.views._nvist_renderer import Field, Renderer, rays, view

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = NViSTConfig(
    image_size=(20, 10),
    dim=32,
    depth=1,
    heads=2,
    decoder_dim=32,
    decoder_depth=2,
    decoder_heads=2,
    resolution=6,
    density_dim=2,
    colour_dim=3,
    hidden_dim=8,
    samples=16,
)
FRONT = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1], [0, 0, 0, 1]])
BACK = torch.tensor([[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 1], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def network() -> NViST:
    torch.manual_seed(0)
    return NViST(SMALL).eval()


def _official() -> dict[str, torch.Tensor]:
    state = json.loads((GOLDEN / "nvist-base.json").read_text())["state"]
    return {name: torch.empty(shape, device="meta") for name, shape in state}


def test_a_checkpoint_of_the_authors_training_fits_without_what_is_never_read() -> None:
    with torch.device("meta"):
        network = NViST(NViSTConfig())
    wrapped = {f"module.{name}": value for name, value in _official().items()}
    state = published({"state_dict": wrapped, "iteration": 100_000})
    network.load_state_dict(state, assign=True)
    unread = _official().keys() - state.keys()
    assert len(unread) == 2 + 2 + 6 * 4
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    left_out = sum(_official()[n].numel() for n in unread if not n.endswith("pos_embed"))
    assert trained + left_out == 214_640_771


@torch.inference_mode()
def test_the_field_depends_on_where_the_camera_is_said_to_be(network: NViST) -> None:
    image = torch.rand(1, 3, 20, 10).expand(2, -1, -1, -1)
    field = network.field(image, torch.tensor([[1.0, 1.2], [1.5, 1.2]]))
    assert field.planes.shape == (3, 2, 5, 6, 6)
    assert field.vectors.shape == (3, 2, 5, 6, 1)
    assert (field.planes[:, 0] - field.planes[:, 1]).abs().max() > 1e-3
    mirrored = network.field(image[:1].flip(-1), torch.tensor([[1.0, 1.2]]))
    assert (field.planes[:, :1] - mirrored.planes).abs().max() > 1e-3


def test_blocks_look_at_the_picture_and_at_the_field_by_turns(network: NViST) -> None:
    x, picture, camera = (torch.randn(1, n, 32) for n in (9, 8, 1))
    with torch.inference_mode():
        seen = [
            not torch.equal(block(x, picture, camera), block(x, -picture, camera))
            for block in network.decoder.blocks
        ]
    assert seen == [True, False]


def test_tokens_of_a_part_become_its_patches(network: NViST) -> None:
    decoder = network.decoder
    tokens = torch.randn(1, 12, 32)
    with torch.inference_mode():
        planes = decoder._unpatchified(tokens, decoder.decoder_pred, 2)
        # The second plane's token at row 1, column 0.
        patch = decoder.decoder_pred[1](tokens[0, 4 + 2]).view(3, 3, 5)
    torch.testing.assert_close(planes[1, 0, :, 3:, :3].permute(1, 2, 0), patch)


@pytest.fixture(scope="module")
def slab() -> tuple[Renderer, Field]:
    """Density between z = 0.2 and z = 0.4 alone, over a field of 8 cells a side."""
    torch.manual_seed(0)
    renderer = Renderer(
        density_dim=1,
        colour_dim=2,
        hidden_dim=4,
        frequencies=2,
        samples=200,
        depths=(0.0, 2.0),
        box=SMALL.box,
    )
    planes = torch.zeros(3, 1, 3, 8, 8)
    vectors = torch.zeros(3, 1, 3, 8, 1)
    planes[0, :, 0] = 1e4  # the plane of x and y, whose vector goes along z
    vectors[0, :, 0, 5] = 1.0
    planes[:, :, 1:] = torch.randn(3, 1, 2, 8, 8)
    vectors[:, :, 1:] = 1.0
    return renderer, Field(planes, vectors)


@torch.inference_mode()
def test_both_sides_of_a_wall_are_where_they_are(slab: tuple[Renderer, Field]) -> None:
    renderer, field = slab
    depths = []
    for pose in (FRONT, BACK):
        origins, directions = rays(pose, 100.0, (1, 1))
        seen = renderer(field, origins[None], 3 * directions[None])  # of any length
        assert seen.weights.sum().item() == pytest.approx(1, abs=1e-4)
        depths.append(seen.depth.item())
    # Bilinear sampling lets the wall begin a cell's half earlier, within a sample's length.
    assert depths == pytest.approx([1 + 0.1, 1 - 0.5], abs=0.02)


@torch.inference_mode()
def test_nothing_is_the_background(slab: tuple[Renderer, Field]) -> None:
    renderer, field = slab
    origins, directions = rays(BACK, 100.0, (1, 1))
    away = renderer(field, origins[None], -directions[None], background=0.25)
    assert away.colour.flatten().tolist() == [0.25] * 3
    assert away.depth.item() == 0


@torch.inference_mode()
def test_a_view_is_the_same_in_pieces(slab: tuple[Renderer, Field]) -> None:
    renderer, field = slab
    whole, depth = next(view(renderer, field, FRONT, 4.0, (5, 3)))
    pieces = list(view(renderer, field, FRONT, 4.0, (5, 3), at_once=4))
    assert [len(colour[0]) for colour, _ in pieces] == [4, 4, 4, 3]
    torch.testing.assert_close(torch.cat([colour for colour, _ in pieces], dim=1), whole)
    torch.testing.assert_close(torch.cat([depth for _, depth in pieces], dim=1), depth)
    assert len(whole.unique(dim=1)[0]) > 1


def test_rays_go_through_the_middles_of_pixels() -> None:
    origins, directions = rays(BACK, 2.0, (2, 3))
    assert torch.equal(origins, torch.tensor([[0.0, 0, 1]]).expand(6, -1))
    assert directions.norm(dim=1).tolist() == pytest.approx([1] * 6)
    # Seen from behind, the left of the picture is at positive x; y goes down.
    first = torch.tensor([1.0 / 2, -0.5 / 2, -1])
    torch.testing.assert_close(directions[0], first / first.norm())
