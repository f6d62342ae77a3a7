"""Denoising Vision Transformers: the denoiser by hand, names of published files, pre-processing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.registry import architecture
from models.serving import Device, Predictor
from models.weights.errors import LicenceNotAccepted
from models.weights.pull import pull
from service.triton.cards import WeightsRecord

DVT = architecture("dvt")


def _demo(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return DVT.network(DVT.config("demo") | changes).eval()


def _names(variant: str) -> set[str]:
    with torch.device("meta"):
        return set(DVT.network(DVT.config(variant)).state_dict())


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("dinov2-small-voc-denoised", 2_300_160), ("dinov2-base-voc-denoised", 8_139_264)],
)
def test_the_denoiser_has_the_published_number_of_parameters(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        network = DVT.network(DVT.config(variant))
    own = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("vit."))
    assert own == parameters


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert sum(p.numel() for p in _demo().parameters()) <= 524_288


def test_positions_are_added_and_nothing_is_taken_away_or_normalised() -> None:
    network = _demo()
    for layer in (network.denoiser.attn.proj, network.denoiser.mlp.fc2):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    features = torch.randn(2, 8, 8, 64)
    with torch.inference_mode():
        clean = network.clean(features)
    torch.testing.assert_close(clean, features + network.pos_embed.view(1, 8, 8, 64))


def test_class_token_and_registers_are_not_fed_to_the_denoiser() -> None:
    network = _demo(backbone="vit_small_patch14_reg4_dinov2")
    seen: list[torch.Size] = []
    network.denoiser.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape))
    with torch.inference_mode():
        token, clean = network.represent(torch.randn(1, 3, 64, 48))
    assert seen == [(1, 8 * 6, 64)]
    assert token.shape == (1, 64)
    assert clean.shape == (1, 8, 6, 64)


def test_a_lower_stride_makes_more_patches_with_the_same_weights() -> None:
    network, fine = _demo(), _demo(stride=4)
    fine.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert network(torch.randn(1, 3, 64, 64)).shape == (1, 8, 8, 64)
        assert fine(torch.randn(1, 3, 64, 80)).shape == (1, 15, 19, 64)


def test_a_distilled_network_gives_the_backbone_s_own_features() -> None:
    network = _demo(depth=0, table=None)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        tokens = network.vit.model.forward_features(image)
        torch.testing.assert_close(network(image).flatten(1, 2), tokens[:, 1:])


def test_the_denoiser_s_file_and_the_backbone_s_make_one_network() -> None:
    variant = "dinov2-small-voc-denoised"
    config, wanted = DVT.config(variant), _names(variant)
    backbone = {
        name.removeprefix("vit.model."): torch.zeros(1)
        for name in wanted
        if name.startswith("vit.model.")
    }
    own = {name: torch.ones(1) for name in wanted if not name.startswith("vit.")}
    state = DVT.translate({"denoiser": own, "step": 1}, config)
    state |= DVT.translate(backbone | {"mask_token": torch.zeros(1)}, config)
    assert state.keys() == wanted
    assert state["pos_embed"].item() == 1
    assert state["vit.model.pos_embed"].item() == 0


def test_a_distilled_file_is_the_backbone_under_its_wrapper_s_name() -> None:
    variant = "dinov2-base-imgnet-distilled"
    wanted = _names(variant)
    file = {"model": {name.removeprefix("vit."): torch.zeros(1) for name in wanted}}
    assert DVT.translate(file, DVT.config(variant)).keys() == wanted


def test_every_published_network_has_a_variant() -> None:
    folders = [
        source.url.split("/")[4]
        for variant in DVT.variants.values()
        for source in variant.sources[:1]
    ]
    assert {folder: folders.count(folder) for folder in folders} == {
        "voc_denoised": 12,
        "voc_distilled": 8,
        "imgnet_denoised": 1,
        "imgnet_distilled": 1,
    }


def test_pictures_are_squashed_and_normalised_as_the_backbone_s() -> None:
    for name, mean, size in (
        ("dinov2-base-voc-denoised", 0.485, 518),
        ("clip-base-voc-denoised", 0.48145466, 512),
        ("eva02-base-voc-distilled", 0.48145466, 512),
        ("augreg-base-voc-denoised", 0.5, 512),
    ):
        image = DVT.variants[name].image
        assert image is not None
        assert (image.height, image.width, image.resize) == (size, size, "squash")
        assert image.interpolation == "bicubic"
        assert image.mean[0] == mean
    card = DVT.card("demo", weights=WeightsRecord(kind="random"))
    network = _demo()
    served = DVT.serve(network, card, Device(), Path())
    assert isinstance(served, Predictor)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        token, clean = network.represent(torch.tensor(image, dtype=torch.float32))
    answer = served.predict({"IMAGE": pixels, "DENSE": np.ones((2, 1), np.int32)})
    np.testing.assert_allclose(answer["EMBEDDING"], token, atol=1e-5)
    np.testing.assert_allclose(answer["FEATURES"], clean, atol=1e-5)


def test_weights_beside_or_made_from_mae_s_are_not_for_commercial_use(tmp_path: Path) -> None:
    official = WeightsRecord(kind="official")
    for name in DVT.variants:
        card = DVT.card(name, weights=official)
        assert card.licence.commercial == (not name.startswith("mae-")), name
    with pytest.raises(
        LicenceNotAccepted, match=r"dvt:mae-base-voc-denoised are under CC-BY-NC-4\.0"
    ):
        pull("dvt:mae-base-voc-denoised", tmp_path / "repository")
    # Own weights of the same network are under their owner's terms.
    own = DVT.card("mae-base-voc-distilled", weights=WeightsRecord(kind="own"))
    assert own.licence.commercial
