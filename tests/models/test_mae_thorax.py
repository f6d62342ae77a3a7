"""MAE for thorax disease: masking, patches, positions, the head, names of checkpoints, pre-processing."""

from __future__ import annotations

from math import cos, sin
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.classification._mae_thorax_network import (
    PRETRAINING,
    MaskedAutoencoder,
    masking,
    position_table,
    reconstruction_loss,
    to_patches,
    to_picture,
)
from models.classification.mae_thorax import CHEST_X_RAY14
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord
from tests.fidelity.golden import Golden

MAE = architecture("mae-thorax")
GOLDENS = Path(__file__).parents[1] / "golden"
CLASSIFIER = Golden.read(GOLDENS / "mae-thorax-vit-small-14.json")


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = MAE.network(MAE.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("vit-small-nih", 21_671_054),
        ("vit-base-nih", 85_809_422),
        ("densenet121-nih-mae", 6_968_206),
        ("resnet50-nih-swav", 23_536_718),
    ],
)
def test_parameter_counts_are_those_of_the_authors_code(variant: str, parameters: int) -> None:
    assert _parameters(variant) == parameters


def test_pretraining_network_has_the_size_of_the_authors() -> None:
    with torch.device("meta"):
        network = MaskedAutoencoder(**PRETRAINING["vit-small"])
    # The tables of positions are fixed.
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 28_487_424
    golden = Golden.read(GOLDENS / "mae-thorax-pretrain-small-dec512d2b.json")
    assert {n: tuple(t.shape) for n, t in network.state_dict().items()} == dict(golden.state)


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288


def test_patches_with_the_lowest_noise_stay() -> None:
    made = masking(torch.tensor([[0.6, 0.1, 0.9, 0.3, 0.2]]), share=0.5)
    # Two of five, the lowest first; then the hidden ones, again from low to high: 1 4 | 3 0 2.
    assert made.kept.tolist() == [[1, 4]]
    assert made.restore.tolist() == [[3, 0, 4, 2, 1]]
    assert made.hidden.tolist() == [[1, 0, 1, 1, 0]]
    assert masking(torch.rand(1, 196)).kept.shape == (1, 19)


def test_patches_lie_in_rows_with_the_channels_innermost() -> None:
    image = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    patches = to_patches(image, 2)
    assert patches.shape == (1, 6, 8)
    # Patch 4 is in row 1, column 1: pixels (2..3, 2..3), of which channel 1 lies 24 higher.
    assert patches[0, 4].tolist() == [14, 38, 15, 39, 20, 44, 21, 45]
    assert torch.equal(to_picture(patches, 2, (2, 3)), image)


def test_positions_by_hand() -> None:
    table = position_table(8, (2, 3))
    assert table.shape == (1, 7, 8)
    assert not table[0, 0].any()
    # Row 1, column 2, at rates 1 and 1 / 100.
    expected = [f(p * r) for p in (2, 1) for f in (sin, cos) for r in (1, 0.01)]
    torch.testing.assert_close(table[0, 1 + 3 + 2], torch.tensor(expected))


def _autoencoder() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(
        image_size=16,
        patch_size=4,
        dim=16,
        depth=2,
        heads=2,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=4,
    ).eval()


def test_hidden_patches_are_never_seen_and_alone_count() -> None:
    network = _autoencoder()
    image, noise = torch.randn(1, 3, 16, 16), torch.rand(1, 16)
    with torch.inference_mode():
        made = network(image, noise, 0.75)
        hidden = made.masking.hidden
        assert hidden.sum() == 12
        seen = to_patches(image, 4)
        other = network.picture(torch.where(hidden[..., None] > 0, torch.randn_like(seen), seen))
        torch.testing.assert_close(network(other, noise, 0.75).patches, made.patches)
        loss = reconstruction_loss(image, made.patches, hidden, 4)
        error = ((made.patches - seen) ** 2)[hidden > 0]
    torch.testing.assert_close(loss, error.mean())


def test_patches_of_normalised_pixels() -> None:
    image = torch.randn(2, 3, 8, 8)
    wanted = torch.nn.functional.layer_norm(to_patches(3 * image + 5, 4), (48,))
    hidden = torch.tensor([[1.0, 0.0, 0.0, 1.0]]).expand(2, -1)
    # The deviation divides by one less than the number of pixels.
    assert reconstruction_loss(image, wanted * (47 / 48) ** 0.5, hidden, 4, normalised=True) < 1e-8


def test_encoder_of_all_patches_is_that_of_a_masking_that_hides_none() -> None:
    network = _autoencoder()
    image = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        tokens = network.encode(image)
        kept = torch.arange(16).flip(0).expand(2, -1)
        shuffled = network.encode(image, kept)
    assert tokens.shape == (2, 17, 16)
    torch.testing.assert_close(shuffled[:, 1:].flip(1), tokens[:, 1:], atol=1e-5, rtol=1e-4)


def _demo() -> nn.Module:
    torch.manual_seed(0)
    network = MAE.network(MAE.config("demo")).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def test_head_reads_the_mean_of_the_patches() -> None:
    network = _demo()
    tokens: list[torch.Tensor] = []
    network.blocks[-1].register_forward_hook(lambda _module, _inputs, out: tokens.append(out))
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 64, 64))
        mean = tokens[0][:, 1:].mean(1)
        mean = mean - mean.mean(1, keepdim=True)
        normed = mean / (mean.square().mean(1, keepdim=True) + 1e-6).sqrt()
        normed = normed * network.fc_norm.weight + network.fc_norm.bias
        expected = normed @ network.head.weight.T + network.head.bias
    assert tokens[0].shape == (2, 65, 96)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_checkpoints_of_the_fine_tuning_script() -> None:
    config = MAE.config("vit-small-nih")
    official = {name: torch.empty(shape, device="meta") for name, shape in CLASSIFIER.state}
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in MAE.network(config).state_dict().items()}
    saved = {"model": official, "optimizer": {}, "epoch": 74, "scaler": {}, "args": None}
    parallel = {"model": {f"module.{name}": value for name, value in official.items()}}
    for checkpoint in (saved, parallel, official):
        state = MAE.translate(checkpoint, config)
        assert {n: t.shape for n, t in state.items()} == wanted


def test_positions_of_larger_pictures_are_resized() -> None:
    config = MAE.config("vit-small-nih")
    rising = torch.arange(28.0).expand(28, 28).reshape(1, 784, 1)
    table = torch.cat((torch.full((1, 1, 1), 9.0), rising), dim=1)
    resized = MAE.translate({"model": {"pos_embed": table}}, config)["pos_embed"]
    assert resized.shape == (1, 197, 1)
    assert resized[0, 0] == 9
    # Without antialiasing a cell in the middle of a ramp is read half-way between two of the table's.
    torch.testing.assert_close(resized[0, 1 + 5], torch.tensor([10.5]))


def test_labels_and_activations() -> None:
    record = WeightsRecord(kind="official")
    nih = MAE.card("vit-small-nih", weights=record)
    assert nih.labels == CHEST_X_RAY14
    assert len(set(nih.labels)) == 14
    assert [nih.labels[i] for i in (0, 2, 9, 12)] == [
        "Atelectasis",
        "Effusion",
        "Edema",
        "Pleural_Thickening",
    ]
    assert (nih.activation, nih.thresholds, nih.licence.commercial) == ("sigmoid", {}, False)
    covidx = MAE.card("vit-base-covidx", weights=record)
    assert (covidx.activation, len(covidx.labels)) == ("softmax", 4)


def test_findings_do_not_exclude_each_other() -> None:
    # The statistics of X-rays, at the size of the demo.
    image = MAE.variants["vit-small-nih"].image
    assert image is not None
    assert (image.resize, image.resize_to, image.interpolation) == ("shorter-side", 256, "bicubic")
    small = image.model_copy(update={"height": 64, "width": 64})
    card = MAE.card("demo", weights=WeightsRecord(kind="random"))
    network = _demo()
    served = MAE.serve(network, card.model_copy(update={"image": small}), Device(), Path())
    assert isinstance(served, Predictor)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    scores = served.predict({"IMAGE": pixels})["SCORES"]
    with torch.inference_mode():
        logits = network(torch.tensor((pixels / 255 - 0.5056) / 0.252, dtype=torch.float32))
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits.double().numpy())), atol=1e-5)
    assert not np.allclose(scores.sum(1), 1)
