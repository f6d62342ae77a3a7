"""MAGVIT: sizes, tokens, the ten tasks' conditions, COMMIT and its decoding, names of published checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from models.generation._magvit_conditions import TASKS, condition
from models.generation._magvit_decoding import Commit, Grid, guided, mask_ratio
from models.generation._magvit_transformer import BertConfig, MaskedTransformer, Special
from models.reconstruction._magvit_3dvq import TokenizerConfig, VideoTokenizer
from models.reconstruction._magvit_lfq import (
    LfqConfig,
    LfqTokenizer,
    Upsample,
    averaged,
    code_of,
    signs,
    tokens_of,
)

GOLDEN = Path(__file__).parents[1] / "golden"
BAIR = {"channel_multipliers": (1, 2, 4), "temporal_downsample": (True, True)}
LATENT = (4, 6, 6)
CODES = 32


def _millions(build: type[nn.Module], config: object) -> float:
    with torch.device("meta"):
        network = build(config)
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("filters", "changes", "millions"),
    [(64, {}, 40.6), (128, {}, 157.8), (64, BAIR, 36.6), (128, BAIR, 141.9)],
)
def test_tokenizers_have_the_published_sizes(filters: int, changes: dict, millions: float) -> None:
    config = TokenizerConfig(filters=filters, **changes)
    assert _millions(VideoTokenizer, config) == pytest.approx(millions, abs=0.06)
    assert config.stride == (4, 4, 4) if changes else (4, 8, 8)


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [((384, 12, 6, 1536), 22.3), ((768, 12, 12, 3072), 87.3), ((1024, 24, 16, 4096), 305.6)],
)
def test_transformers_have_the_published_sizes(
    sizes: tuple[int, int, int, int], millions: float
) -> None:
    assert _millions(MaskedTransformer, BertConfig(*sizes)) == pytest.approx(millions, abs=0.06)


@torch.inference_mode()
def test_a_clip_becomes_the_numbers_of_the_nearest_codes() -> None:
    torch.manual_seed(0)
    config = TokenizerConfig(32, (1, 2), (True,), 1, embedding_dim=5, codebook_size=7)
    network = VideoTokenizer(config).eval()
    video = torch.rand(2, 3, 4, 8, 8)
    network.quantizer.codebook.copy_(network.encoder(video).movedim(1, -1).flatten(0, 3)[:7])
    latent = network.encoder(video)
    tokens = network.encode(video)
    assert tokens.shape == (2, 2, 4, 4)
    distances = torch.cdist(latent.movedim(1, -1).flatten(0, 3), network.quantizer.codebook)
    assert torch.equal(tokens.flatten(), distances.argmin(1))
    assert tokens[0, 0].flatten()[:4].tolist() == [0, 1, 2, 3]
    back = network(video)
    assert back.shape == video.shape
    assert (back.min() >= 0) & (back.max() <= 1)


@torch.inference_mode()
def test_a_picture_becomes_the_signs_of_its_channels() -> None:
    torch.manual_seed(0)
    network = LfqTokenizer(LfqConfig(32, (1, 2), 1, z_channels=10)).eval()
    image = torch.rand(1, 3, 12, 8) * 2 - 1
    latent = network.encoder(image)
    tokens = network.encode(image)
    assert tokens.shape == (1, 6, 4)
    assert torch.equal(code_of(tokens, 10), signs(latent))
    assert torch.equal(tokens_of(code_of(tokens, 10)), tokens)
    assert code_of(torch.tensor([[[5]]]), 4).flatten().tolist() == [1, -1, 1, -1]
    assert network.decode(tokens).shape == image.shape


def test_channel_groups_become_places_from_the_outermost() -> None:
    up = Upsample(2)
    nn.init.zeros_(up.conv1.weight)
    with torch.no_grad():
        up.conv1.bias.copy_(torch.arange(8.0))
        grown = up(torch.zeros(1, 2, 1, 1))[0]
    assert grown.tolist() == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


def test_running_averages_are_taken_out_of_a_published_checkpoint() -> None:
    golden = json.loads((GOLDEN / "magvit-lfq-256.json").read_text())
    trained = {name: torch.zeros(shape) for name, shape in golden["state"]}
    mean = {f"model_ema.{name.replace('.', '')}": torch.ones(1) for name in trained}
    other = {"loss.discriminator.main.0.weight": torch.zeros(1), "model_ema.decay": torch.ones(())}
    checkpoint = {"epoch": 270, "state_dict": {**trained, **mean, **other}}
    assert averaged(checkpoint).keys() == trained.keys()
    assert all(value.all() for value in averaged(checkpoint).values())
    assert not any(value.any() for value in averaged({"state_dict": trained}).values())


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.given is not None])
def test_a_condition_tells_only_what_is_known(task: str) -> None:
    torch.manual_seed(0)
    video = torch.rand(1, 3, 16, 24, 24)
    made = condition(task, video, LATENT)
    assert torch.equal(
        made.video[made.pixels.expand_as(video)], video[made.pixels.expand_as(video)]
    )
    other = torch.where(made.pixels, video, torch.rand_like(video))
    torch.testing.assert_close(condition(task, other, LATENT).video, made.video)
    shares = made.pixels.float().mean(), made.places.float().mean()
    # The first latent frame stands for four, of which one is known.
    wanted = {"frame_prediction": (1 / 16, 1 / 4), "frame_interpolation": (2 / 16, 2 / 4)}
    expected = wanted.get(task.removesuffix("_class"), (shares[0].item(),) * 2)
    assert torch.stack(shares).tolist() == pytest.approx(expected, abs=0.07)


def test_ten_tasks_of_which_two_are_told_the_class() -> None:
    assert len(TASKS) == 10
    assert [n for n, t in TASKS.items() if t.labelled] == [
        "full_generation",
        "frame_prediction_class",
    ]
    multi = BertConfig(num_classes=3, special_tokens=16)
    assert multi.prefix(Special.FRAME_PREDICTION, None) == (-4, 1024 + 3)
    assert BertConfig(num_classes=3).prefix(Special.FULL_GENERATION, 2) == (1024 + 2,)
    with pytest.raises(ValueError, match="class 3: the network has 3"):
        multi.class_token(3)


@pytest.fixture
def hinted() -> Commit:
    """Two samples: the first with its first frame as the condition, the second without any."""
    tokens = torch.randint(0, CODES, (2, *LATENT), generator=torch.Generator().manual_seed(1))
    within = torch.zeros(2, *LATENT, dtype=torch.bool)
    within[0, 0] = True
    return Commit("cond->input", tokens, within)


def _decoded(commit: Commit, seeds: list[int], steps: int = 6) -> tuple[torch.Tensor, list[Grid]]:
    """Decode with logits that depend on the place alone; return the tokens and every step's grid."""
    stream = torch.Generator().manual_seed(9)
    logits = 3 * torch.randn(1, *LATENT, CODES, generator=stream).expand(len(seeds), -1, -1, -1, -1)
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    grids = [commit.start(len(seeds), LATENT)]
    for step in range(steps):
        tokens, grid = commit.step(grids[-1], logits, (step + 1) / steps, streams)
        grids.append(grid)
    return tokens, grids


def test_a_condition_is_a_hint_and_comes_back_where_it_is_forgotten(hinted: Commit) -> None:
    tokens, grids = _decoded(hinted, [0, 0])
    assert hinted.tokens is not None
    assert torch.equal(grids[0].inputs[0, 0], hinted.tokens[0, 0])
    assert (grids[0].inputs[0, 1:] == Special.MASK).all()
    assert (grids[0].inputs[1] == Special.MASK).all()
    for grid in grids[:-1]:
        again = grid.unknown[0, 0]
        assert again.any()
        assert torch.equal(grid.inputs[0, 0][again], hinted.tokens[0, 0][again])
        assert (grid.unconditional[grid.unknown] == Special.MASK).all()
        assert torch.equal(grid.segments[0, 0], again.long())
        assert not grid.segments[1].any()
    # Predicted like the rest, not kept.
    assert (tokens[0, 0] != hinted.tokens[0, 0]).any()
    kept, _ = _decoded(replace(hinted, mode="cond->cond"), [0, 0])
    assert torch.equal(kept[0, 0], hinted.tokens[0, 0])


def test_fewer_are_forgotten_in_every_step_by_the_schedule(hinted: Commit) -> None:
    _, grids = _decoded(hinted, [0, 1])
    counts = [grid.unknown[1].sum().item() for grid in grids[:-1]]
    cosine = torch.cos(torch.arange(6) / 6 * torch.pi / 2)
    assert counts == (144 * cosine).floor().long().tolist()
    for before, after in pairwise(grids[:-1]):
        assert not (after.unknown & ~before.unknown).any()  # what is decided stays


def test_a_seed_gives_the_same_tokens_in_any_batch(hinted: Commit) -> None:
    assert hinted.tokens is not None
    assert hinted.within is not None
    both, _ = _decoded(hinted, [4, 5])
    alone, _ = _decoded(Commit("cond->input", hinted.tokens[1:], hinted.within[1:]), [5])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(_decoded(Commit(), [6])[0], alone)


@pytest.mark.parametrize(
    ("schedule", "ratio"),
    [("uniform", 0.75), ("pow2", 0.9375), ("log", 0.2), ("exp", 1 - 2**-7.5), ("cosine", 0.92388)],
)
def test_schedules(schedule: str, ratio: float) -> None:
    progress = torch.tensor(0.25)
    assert mask_ratio(progress, 1024, schedule).item() == pytest.approx(ratio, abs=1e-5)
    assert mask_ratio(torch.tensor(1.0), 1024, schedule).item() == pytest.approx(1e-6, abs=1e-7)
    with pytest.raises(ValueError, match="unknown schedule 'linear'"):
        mask_ratio(progress, 1024, "linear")


def test_guidance_leads_away_from_the_unconditional() -> None:
    given, free = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert torch.equal(guided(given, free, 0.0), given)
    assert guided(given, free, 2.0).tolist() == [3.0, -2.0]


@torch.inference_mode()
def test_special_tokens_stand_at_the_end_of_the_vocabulary() -> None:
    torch.manual_seed(0)
    config = BertConfig(16, 1, 2, 32, CODES, 3, 16, (1, 2, 2), num_segments=2, prefix_length=2)
    network = MaskedTransformer(config).eval()
    prefix = torch.tensor([[-4, config.class_token(1)]])
    grid = torch.tensor([[[[3, -1], [-1, 5]]]])
    logits = network(prefix, grid)
    assert logits.shape == (1, 1, 2, 2, CODES)
    last = config.vocabulary
    same = network(prefix.where(prefix >= 0, prefix + last), grid.where(grid >= 0, grid + last))
    assert torch.equal(logits, same)
    marked = network(prefix, grid, (grid < 0).long())
    assert (marked - logits).abs().max() > 1e-4
