"""MicroDiT: its parts by hand, the sampler, and what its callers are promised."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.demo import shapes
from models.demo.recipes.micro_dit import caption, save, tokenizer
from models.demo.recipes.micro_dit_scores import measure, request
from models.demo.train import RECORD, train
from models.diffusion.autoencoder import Autoencoder
from models.diffusion.clip_text import TextEncoder, TowerConfig, read_tower
from models.diffusion.edm import heun, noise_schedule
from models.generation.micro_dit_generator import MicroDiT
from models.generation.micro_dit_network import (
    DiT,
    DiTConfig,
    ExpertChoice,
    SwiGLU,
    linspace,
    published,
)
from models.generation.micro_dit_sampling import GuidedDenoiser
from models.registry import architecture
from models.serving import Arrays, Device, InvalidInput
from models.shipped import WEIGHTS
from service.triton.cards import Card, WeightsRecord

SMALL = DiTConfig(
    input_size=8,
    dim=32,
    depth=4,
    head_dim=8,
    multiple_of=16,
    caption_channels=24,
    patch_mixer_depth=2,
    patch_mixer_dim=16,
    patch_mixer_mlp_ratio=2.0,
    use_bias=False,
    num_experts=4,
    expert_capacity=2.0,
)


@pytest.fixture
def network() -> DiT:
    torch.manual_seed(3)
    return DiT(SMALL).eval()


def make_inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(count, 4, 8, 8), torch.randn(count), torch.randn(count, 5, 24)


class TestExpertChoice:
    def test_each_expert_takes_its_best_tokens_of_each_sample(self) -> None:
        # Two experts, four tokens, capacity 1: each takes two. Expert e multiplies by e + 1.
        layer = ExpertChoice(dim=2, hidden=2, multiple_of=2, experts=2, capacity=1.0)
        with torch.no_grad():
            layer.gate.weight.copy_(torch.eye(2))
            layer.w1.copy_(torch.eye(2).expand(2, 2, 2))
            layer.w2.copy_(torch.stack([torch.eye(2), 2 * torch.eye(2)]))
        tokens = torch.tensor([[[3.0, 0.0], [2.0, 1.0], [1.0, 1.0], [0.0, 5.0]]])
        p = tokens.softmax(dim=2)
        gelu = nn.functional.gelu(tokens)
        # Affinity to expert 0 falls in this order, so it takes tokens 0 and 1, expert 1 takes 2 and 3.
        expected = torch.stack(
            [
                p[0, 0, 0] * gelu[0, 0],
                p[0, 1, 0] * gelu[0, 1],
                p[0, 2, 1] * 2 * gelu[0, 2],
                p[0, 3, 1] * 2 * gelu[0, 3],
            ]
        )
        torch.testing.assert_close(layer(tokens)[0], expected)

    def test_a_token_that_no_expert_takes_gives_zero_and_one_that_two_take_their_sum(self) -> None:
        layer = ExpertChoice(dim=1, hidden=1, multiple_of=1, experts=2, capacity=1.0)
        with torch.no_grad():
            layer.gate.weight.zero_()  # All affinities are 1/2: both experts take the same tokens.
            layer.w1.fill_(1.0)
            layer.w2.fill_(1.0)
        out = layer(torch.full((1, 4, 1), 2.0))
        gelu = nn.functional.gelu(torch.tensor(2.0)).item()
        assert sorted(out.flatten().tolist()) == pytest.approx([0.0, 0.0, gelu, gelu])

    def test_other_samples_of_the_batch_do_not_matter(self) -> None:
        torch.manual_seed(0)
        layer = ExpertChoice(dim=8, hidden=16, multiple_of=16, experts=4, capacity=2.0)
        tokens = torch.randn(3, 12, 8)
        torch.testing.assert_close(layer(tokens)[1:2], layer(tokens[1:2]))


class TestNetwork:
    def test_published_sizes(self) -> None:
        with torch.device("meta"):
            xl = DiT(published("MicroDiT_XL_2", input_size=64, pos_interp_scale=2.0))
        assert sum(p.numel() for p in xl.parameters()) == 1_165_442_320
        assert len(xl.state_dict()) == 478
        assert [block.attn.heads for block in xl.blocks] == [8] + [10] * 6 + [12] * 7 + [14] * 7 + [
            16
        ] * 7
        assert [i for i, b in enumerate(xl.blocks) if isinstance(b.mlp, ExpertChoice)] == list(
            range(1, 27, 2)
        )
        assert [isinstance(b.mlp, ExpertChoice) for b in xl.patch_mixer] == [False, True] * 3

    def test_without_a_patch_mixer_and_with_runs_of_multipliers(self) -> None:
        config = dataclasses.replace(
            SMALL, use_patch_mixer=False, qkv_multipliers=(0.5, 1.0), ffn_multipliers=(1.0, 2.0)
        )
        network = DiT(config)
        assert not any(name.startswith("patch_mixer") for name in network.state_dict())
        assert [block.attn.width for block in network.blocks] == [16, 16, 32, 32]
        assert isinstance(network.blocks[0].mlp, SwiGLU)
        with pytest.raises(ValueError, match="do not divide"):
            DiT(dataclasses.replace(SMALL, qkv_multipliers=linspace(0.5, 1, 3)))

    def test_the_position_table_spreads_over_twice_the_side(self) -> None:
        small = DiT(dataclasses.replace(SMALL, input_size=8)).pos_embed.view(4, 4, 32)
        large = DiT(dataclasses.replace(SMALL, input_size=16, pos_interp_scale=2.0))
        torch.testing.assert_close(large.pos_embed.view(8, 8, 32)[::2, ::2], small)
        # The first half tells the column, the second the row.
        assert torch.equal(small[0, :, :16], small[3, :, :16])
        assert torch.equal(small[:, 0, 16:], small[:, 3, 16:])

    def test_a_masked_pass_that_keeps_everything_is_the_unmasked_one(self, network: DiT) -> None:
        latent, level, captions = make_inputs(3)
        conditioning = network.condition(captions)
        kept = torch.stack([torch.randperm(16) for _ in range(3)])
        torch.testing.assert_close(
            network(latent, level, conditioning, kept), network(latent, level, conditioning)
        )

    def test_masked_patches_are_blank_but_seen_by_the_mixer(self, network: DiT) -> None:
        latent, level, captions = make_inputs(1)
        conditioning = network.condition(captions)
        kept = torch.tensor([[0, 5, 10, 15]])  # the diagonal of the 4 x 4 grid of patches
        output = network(latent, level, conditioning, kept)
        patches = output.unfold(2, 2, 2).unfold(3, 2, 2).abs().amax((1, 4, 5))[0]
        assert torch.equal(patches > 0, torch.eye(4, dtype=torch.bool))
        latent[:, :, 0:2, 2:4] += 1.0  # a patch that is dropped behind the mixer
        assert not torch.equal(network(latent, level, conditioning, kept), output)


class TestSampler:
    def test_the_schedule_falls_from_80_to_0(self) -> None:
        sigmas = noise_schedule(30)
        assert sigmas[0] == pytest.approx(80.0)
        assert sigmas[-2:] == [pytest.approx(0.002), 0.0]
        assert sigmas == sorted(sigmas, reverse=True)
        assert noise_schedule(1) == [80.0, 0.0]

    def test_two_steps_of_a_linear_denoiser_by_hand(self) -> None:
        a = 0.25
        x0 = 80.0 * 1.5
        slope = (1 - a) * x0 / 80.0
        euler = x0 + (0.002 - 80.0) * slope
        slope_there = (1 - a) * euler / 0.002
        x1 = x0 + (0.002 - 80.0) * (slope + slope_there) / 2
        result = heun(lambda state, sigma: a * state, torch.tensor([1.5]), 2)
        assert result.dtype == torch.float64
        assert result.item() == pytest.approx(a * x1, rel=1e-9)

    def test_it_converges_with_the_square_of_the_step_on_gaussian_data(self) -> None:
        deviation = 0.9

        def ideal(state: Tensor, sigma: float) -> Tensor:
            return deviation**2 / (deviation**2 + sigma**2) * state

        exact = 80.0 * deviation / math.hypot(deviation, 80.0)
        errors = [abs(heun(ideal, torch.ones(1), steps).item() - exact) for steps in (40, 80, 160)]
        assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.25)
        assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.25)

    def test_guidance_mixes_with_the_blank_caption_sample_by_sample(self, network: DiT) -> None:
        state, _, captions = make_inputs(3)
        state = state.double()
        with torch.inference_mode():
            shown = network.condition(captions)
            blank = network.condition(torch.zeros_like(captions))

            def plain(conditioning: object) -> Tensor:
                return GuidedDenoiser(network, conditioning, torch.ones(3))(state, 0.7)  # type: ignore[arg-type]

            with_caption, without = plain(shown), plain(blank)
            guided = GuidedDenoiser(network, shown, torch.tensor([0.0, 3.0, 5.0]))(state, 0.7)
        # The preconditioning is linear in the network's output, so the mixture passes through it.
        strength = torch.tensor([1.0, 3.0, 5.0]).view(3, 1, 1, 1)
        torch.testing.assert_close(
            guided, without + strength * (with_caption - without), atol=1e-5, rtol=1e-4
        )

    def test_without_guidance_the_blank_branch_is_not_run(self, network: DiT) -> None:
        rows: list[int] = []
        network.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
        state, _, captions = make_inputs(3)
        with torch.inference_mode():
            conditioning = network.condition(captions)
            for guidance in ([1.0, 1.0, 0.5], [1.0, 2.0, 1.0]):
                GuidedDenoiser(network, conditioning, torch.tensor(guidance))(state.double(), 1.0)
        assert rows == [3, 4]


class OpenClipBlock(nn.Module):
    """A block as in open_clip's text tower, from torch's own attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class OpenClip(nn.Module):
    """The text side of a CLIP as open_clip builds and names it, with an entry of the image side."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(torch.randn(config.tokens, config.width))
        blocks = [OpenClipBlock(config.width, config.heads) for _ in range(config.layers)]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.randn(config.width, 4))
        self.visual = nn.ModuleDict({"ln_post": nn.LayerNorm(3)})

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        return self.ln_final(x)


class TestTextTower:
    CONFIG = TowerConfig(
        width=16, layers=2, heads=2, vocabulary=30, tokens=9, start=1, end=2, padding=0
    )

    @pytest.mark.parametrize("prefix", ["", "text."])
    def test_an_open_clip_checkpoint_gives_the_same_states(
        self, tmp_path: Path, prefix: str
    ) -> None:
        torch.manual_seed(6)
        reference = OpenClip(self.CONFIG).eval()
        state = {
            key if key.startswith("visual.") else prefix + key: value
            for key, value in reference.state_dict().items()
        }
        save_file(state, tmp_path / "text_encoder.safetensors")
        tower = self.CONFIG.build().eval()
        tower.load_state_dict(read_tower(tmp_path / "text_encoder.safetensors"))
        ids = torch.tensor([[1, 7, 9, 2, 0, 0, 0, 0, 0], [1, 5, 6, 7, 8, 9, 10, 11, 2]])
        encoder = TextEncoder(tower, tokenizer(self.CONFIG))
        with torch.inference_mode():
            torch.testing.assert_close(encoder(ids), reference(ids), atol=1e-5, rtol=1e-5)

    def test_an_incomplete_checkpoint_is_refused(self, tmp_path: Path) -> None:
        state = OpenClip(self.CONFIG).state_dict()
        del state["ln_final.bias"]
        save_file(state, tmp_path / "text_encoder.safetensors")
        with pytest.raises(KeyError, match=r"ln_final\.bias"):
            read_tower(tmp_path / "text_encoder.safetensors")

    def test_captions_are_padded_between_start_and_end(self) -> None:
        tokens = tokenizer(self.CONFIG)
        row = tokens(["A RED circle"])[0].tolist()
        assert row[0] == 1
        assert row[4:] == [2, 0, 0, 0, 0]
        assert row == tokens([" a red  circle "])[0].tolist()


class TestAutoencoder:
    def test_files_with_the_attention_named_as_before_load_too(
        self, folder: Path, tmp_path: Path
    ) -> None:
        former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        state = {}
        for name, value in load_file(folder / "vae.safetensors").items():
            for current, before in former.items():
                name = name.replace(f".{current}.", f".{before}.")
            state[name] = value
        assert any(name.endswith(".proj_attn.weight") for name in state)
        save_file(state, tmp_path / "vae.safetensors")
        shutil.copy(folder / "vae.json", tmp_path)
        latent = torch.randn(1, 8, 8, 8)
        one, other = (Autoencoder.load(path, Device()) for path in (folder, tmp_path))
        assert torch.equal(one.decode(latent), other.decode(latent))

    def test_latents_are_scaled_and_decode_to_uint8_pictures(self, folder: Path) -> None:
        autoencoder = Autoencoder.load(folder, Device())
        pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
        latent = autoencoder.encode(pictures)
        pixels = pictures.permute(0, 3, 1, 2) / 127.5 - 1
        with torch.inference_mode():
            mean = autoencoder.vae.encode(pixels).latent_dist.mean
        torch.testing.assert_close(latent, mean * autoencoder.vae.config.scaling_factor)
        assert autoencoder.decode(latent).shape == (2, 64, 64, 3)
        assert autoencoder.decode(latent).dtype == torch.uint8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of a demo model with random weights, none of them zero."""
    torch.manual_seed(8)
    config = architecture("micro-dit").config("demo")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=config["dit"].in_channels,
        norm_num_groups=2,
    )
    text = TextEncoder(config["text_encoder"].build(), tokenizer(config["text_encoder"]))
    path = tmp_path_factory.mktemp("micro-dit")
    save(path, vae, text, DiT(config["dit"]))
    return path


@pytest.fixture(scope="module")
def card() -> Card:
    return architecture("micro-dit").card("demo", weights=WeightsRecord(kind="random"))


@pytest.fixture(scope="module")
def served(folder: Path, card: Card) -> MicroDiT:
    generator = architecture("micro-dit").load(card, folder, Device())
    assert isinstance(generator, MicroDiT)
    return generator


Run = Callable[..., dict[int, list[Arrays]]]


@pytest.fixture(scope="module")
def run(served: MicroDiT) -> Run:
    def collect(
        requests: list[Arrays], cancelled: Callable[[int], bool] = lambda index: False
    ) -> dict[int, list[Arrays]]:
        responses: dict[int, list[Arrays]] = {i: [] for i in range(len(requests))}
        for index, outputs in served.generate(requests, cancelled):
            responses[index].append(outputs)
        return responses

    return collect


def picture(responses: list[Arrays]) -> np.ndarray:
    (found,) = (r["IMAGE"] for r in responses if "IMAGE" in r)
    return found


def assert_same_picture(one: np.ndarray, other: np.ndarray) -> None:
    """Equal but for rounding: a batch may add floating-point numbers in another order."""
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


class TestServing:
    def test_the_stream_is_progress_previews_and_one_picture(self, run: Run, card: Card) -> None:
        (responses,) = run([request(card, "a red circle", 5, steps=8)]).values()
        progress = [r["PROGRESS"].tolist() for r in responses if "PROGRESS" in r]
        assert progress == [[step, 8] for step in range(1, 9)]
        previews = [r["PREVIEW"] for r in responses if "PREVIEW" in r]
        assert len(previews) == 3
        assert {p.shape for p in previews} == {(64, 64, 3)}
        assert list(responses[-1]) == ["IMAGE"]
        assert picture(responses).shape == (64, 64, 3)
        assert picture(responses).dtype == np.uint8

    def test_the_same_request_gives_the_same_picture(self, run: Run, card: Card) -> None:
        one, other = (picture(run([request(card, "a blue star", 0, steps=3)])[0]) for _ in range(2))
        np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize(
        "change",
        [{"seed": 1}, {"prompt": "a red star"}, {"guidance": 2.0}, {"seed": 2**63 - 1}],
        ids=str,
    )
    def test_seed_zero_is_a_seed_and_everything_matters(
        self, run: Run, card: Card, change: dict[str, object]
    ) -> None:
        settings = {"prompt": "a blue star", "seed": 0, "steps": 2, "guidance": 5.0}
        one = picture(run([request(card, **settings)])[0])  # type: ignore[arg-type]
        other = picture(run([request(card, **settings | change)])[0])  # type: ignore[arg-type]
        assert not np.array_equal(one, other)

    def test_company_does_not_change_a_picture(self, run: Run, card: Card) -> None:
        requests = [
            request(card, "a blue star", 3, steps=4, guidance=5.0),
            request(card, "a green cross above a red circle", 4, steps=4, guidance=1.0),
            request(card, "an orange square", 0, steps=4, guidance=9.0),
        ]
        together = run(requests)
        for index, alone in enumerate(requests):
            assert_same_picture(picture(together[index]), picture(run([alone])[0]))

    def test_a_cancelled_request_leaves_between_steps_and_the_others_go_on(
        self, run: Run, card: Card
    ) -> None:
        requests = [request(card, f"a red {s}", 7, steps=6) for s in ("circle", "star", "cross")]
        asked = 0

        def second_leaves_after_two_steps(index: int) -> bool:
            nonlocal asked
            asked += index == 1
            return index == 1 and asked > 2

        responses = run(requests, second_leaves_after_two_steps)
        assert [r["PROGRESS"][0] for r in responses[1] if "PROGRESS" in r] == [1, 2]
        assert not any("IMAGE" in r for r in responses[1])
        for index in (0, 2):
            assert_same_picture(picture(responses[index]), picture(run([requests[index]])[0]))

    def test_nothing_is_computed_once_all_have_gone(
        self, run: Run, card: Card, served: MicroDiT
    ) -> None:
        calls: list[int] = []
        handle = served.network.register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            responses = run([request(card, "a red circle", 1)] * 2, lambda index: True)
        finally:
            handle.remove()
        assert responses == {0: [], 1: []}
        assert calls == []

    def test_requests_share_steps_by_number_and_size(self, served: MicroDiT, card: Card) -> None:
        key = served.key(request(card, "a red circle", 1, guidance=2.0))
        assert key == served.key(request(card, "a blue star", 2))
        assert key != served.key(request(card, "a red circle", 1, steps=13))

    @pytest.mark.parametrize(
        ("prompt", "settings", "message"),
        [
            ("", {}, "0 characters; it must have 1 to 200"),
            ("   ", {}, "0 characters; it must have 1 to 200"),
            ("red " * 60, {}, "characters; it must have 1 to 200"),
            ("red " * 15, {}, "15 tokens; this model takes 1 to 14 tokens"),
            ("a red circle", {"steps": 0}, "steps is 0; it must be between 1 and 100"),
            ("a red circle", {"steps": 101}, "steps is 101; it must be between 1 and 100"),
            (
                "a red circle",
                {"guidance": math.nan},
                "guidance is nan; it must be between 0 and 20",
            ),
            ("a red circle", {"guidance": -1}, "guidance is -1; it must be between 0 and 20"),
            ("a red circle", {"seed": -1}, "seed is -1; it must be between 0 and"),
            ("a red circle", {"width": 512}, "width is 512; micro-dit-demo offers 64"),
        ],
    )
    def test_what_is_out_of_range_is_refused_with_the_range(
        self,
        served: MicroDiT,
        card: Card,
        prompt: str,
        settings: dict[str, float],
        message: str,
    ) -> None:
        with pytest.raises(InvalidInput) as refusal:
            served.key(request(card, prompt, **{"seed": 1} | settings))  # type: ignore[arg-type]
        assert message in str(refusal.value)

    def test_bytes_that_are_no_text_are_refused(self, served: MicroDiT, card: Card) -> None:
        broken = request(card, "a red circle", 1) | {"PROMPT": np.array([b"\xff\xfe"], np.object_)}
        with pytest.raises(InvalidInput, match="not UTF-8"):
            served.key(broken)


class TestTraining:
    def test_a_short_training_writes_the_parts_that_serve(self, tmp_path: Path) -> None:
        target = tmp_path / "micro-dit-demo"
        scores = train("micro-dit-demo", target, seed=1, steps=2)
        assert {p.name for p in target.iterdir()} == {
            "model.safetensors",
            "text_encoder.safetensors",
            "tokenizer.json",
            "training.json",
            "vae.json",
            "vae.safetensors",
        }
        record = json.loads((target / RECORD).read_text())
        assert record["held_out"].keys() == scores.keys()
        assert {v.dtype for v in load_file(target / "model.safetensors").values()} == {
            torch.float16
        }

    def test_captions_say_where_the_first_or_the_second_object_lies(self) -> None:
        _, scene = shapes.draw(12, objects=2)
        first, second = (drawn.name for drawn in scene.objects)
        side = scene.relations[0].side
        told = {caption(scene, np.random.default_rng(k)) for k in range(200)}
        plain = {c.replace("a ", "").replace("an ", "").replace("the ", "") for c in told}
        opposite = {"left of": "right of", "right of": "left of"} | {
            "above": "below",
            "below": "above",
        }
        assert plain == {
            f"{first} {side} {second}",
            f"{second} {opposite[side]} {first}",
            f"{first} and {second}",
        }

    def test_every_word_of_the_captions_has_a_token(self) -> None:
        config = architecture("micro-dit").config("demo")["text_encoder"]
        tokens = tokenizer(config)
        unknown = tokens.tokenizer.token_to_id("[unk]")
        rng = np.random.default_rng(0)
        told = [caption(shapes.draw(k, 16, objects=1 + k % 2)[1], rng) for k in range(300)]
        assert not (tokens(told) == unknown).any()
        assert (tokens(["a zebra"]) == unknown).sum() == 1
        assert tokens.tokenizer.get_vocab_size() <= config.vocabulary


def test_the_shipped_weights_draw_what_they_are_asked_for() -> None:
    scores = measure(WEIGHTS / "micro-dit-demo", "cpu", len(shapes.LABELS))
    assert scores["prompted shape and colour found"] >= 0.8
    assert scores["autoencoder, PSNR in dB"] >= 27
