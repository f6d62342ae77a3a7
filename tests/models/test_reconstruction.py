"""Restorers: what is hidden stays unseen, what is seen stays as it is, and checkpoints of the pre-trainings fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.classification._mae_thorax_network import MaskedAutoencoder
from models.layers.restorer import Restorer
from models.reconstruction.mae_thorax_reconstruction import RestoringAutoencoder
from models.reconstruction.sit_reconstruction import blocks
from models.registry import architecture
from models.serving import Device, InvalidInput
from models.weights.fit import fit
from service.triton.cards import WeightsRecord

SLUGS = ("mae-thorax-reconstruction", "sit-reconstruction")


def restorer(slug: str) -> Restorer:
    torch.manual_seed(0)
    made = architecture(slug)
    network = made.network(made.config("demo")).eval()
    card = made.card("demo", weights=WeightsRecord(kind="random"))
    return Restorer(network, card, Device())


def request(
    seeds: list[int], share: float = 0.5, pixels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    if pixels is None:
        pixels = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
    return {
        "IMAGE": np.repeat(pixels, len(seeds), 0),
        "SHARE": np.full((len(seeds), 1), share, np.float32),
        "SEED": np.array(seeds, np.int64)[:, None],
    }


@pytest.mark.parametrize("slug", SLUGS)
def test_only_hidden_pixels_change_and_no_other_matters(slug: str) -> None:
    served, asked = restorer(slug), request([7])
    answer = served.predict(asked)
    hidden = answer["HIDDEN"][0].astype(bool)
    assert 0.45 < hidden.mean() < 0.6
    pixels, restored = asked["IMAGE"][0], answer["RESTORED"][0]
    np.testing.assert_array_equal(restored[:, ~hidden], pixels[:, ~hidden])
    assert (restored[:, hidden] != pixels[:, hidden]).mean() > 0.9
    # Another content of the hidden places gives the same prediction; another of the seen ones does not.
    for changed, same in ((hidden, True), (~hidden, False)):
        other = asked["IMAGE"].copy()
        other[0][:, changed] = 255 - other[0][:, changed]
        again = served.predict(asked | {"IMAGE": other})["RESTORED"][0]
        assert np.array_equal(again[:, hidden], restored[:, hidden]) == same


@pytest.mark.parametrize("slug", SLUGS)
def test_equal_seeds_hide_the_same_places_in_any_batch(slug: str) -> None:
    served = restorer(slug)
    alone = served.predict(request([3]))
    together = served.predict(request([8, 3]))
    np.testing.assert_array_equal(together["HIDDEN"][1], alone["HIDDEN"][0])
    assert not np.array_equal(together["HIDDEN"][0], alone["HIDDEN"][0])
    difference = np.abs(together["RESTORED"][1].astype(int) - alone["RESTORED"][0])
    assert difference.max() <= 1


@pytest.mark.parametrize("slug", SLUGS)
def test_pictures_of_one_batch_may_hide_different_shares(slug: str) -> None:
    served, asked = restorer(slug), request([1, 2, 3])
    asked["SHARE"][:, 0] = (0.25, 0.5, 0.9)
    shares = served.predict(asked)["HIDDEN"].mean((1, 2))
    np.testing.assert_allclose(shares, (0.25, 0.5, 0.9), atol=0.06)


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("share", [0.0, 0.99, float("nan")])
def test_a_share_that_is_not_allowed(slug: str, share: float) -> None:
    with pytest.raises(InvalidInput, match=r"hides 0\.05 to 0\.95 of a picture"):
        restorer(slug).predict(request([0], share))


def test_whole_patches_are_hidden_and_what_the_network_computes_is_the_autoencoder_s() -> None:
    made = architecture("mae-thorax-reconstruction")
    torch.manual_seed(0)
    network = made.network(made.config("demo")).eval()
    assert isinstance(network, RestoringAutoencoder)
    hidden = network.hide((64, 64), 0.75, torch.Generator().manual_seed(4))
    patches = hidden.unflatten(1, (8, 8)).unflatten(0, (8, 8))  # rows, y, columns, x
    assert torch.equal(patches, patches[:, :1, :, :1].expand_as(patches))
    assert int(patches[:, 0, :, 0].sum()) == 48
    image = torch.randn(1, 3, 64, 64)
    # Noise that hides the same patches, in the autoencoder's own way.
    noise = patches[:, 0, :, 0].flatten()[None] + torch.arange(64) / 1000
    with torch.inference_mode():
        expected = network.picture(MaskedAutoencoder.forward(network, image, noise, 0.75).patches)
        torch.testing.assert_close(network.restore(image, hidden[None]), expected)


def test_blocks_cover_the_share_and_are_no_longer_than_three_tenths() -> None:
    hidden = blocks((40, 60), 0.5, torch.Generator().manual_seed(0))
    assert 0.5 <= float(hidden.float().mean()) < 0.5 + 0.3 * 0.3
    single = blocks((40, 60), 1e-6, torch.Generator().manual_seed(1))
    rows, columns = single.any(1).sum(), single.any(0).sum()
    assert rows * columns == single.sum()
    assert rows <= 12
    assert columns <= 18


def test_the_pretraining_s_own_files_fit() -> None:
    """The file of the masked autoencoder; that of SiT with both heads for student and teacher."""
    mae = architecture("mae-thorax-reconstruction")
    state = mae.network(mae.config("demo")).state_dict()
    assert fit(mae, "demo", [{"model": state, "epoch": 799}]).exact

    sit = architecture("sit-reconstruction")
    whole = architecture("sit")
    config = whole.config("demo") | {"head": "pretraining", "hidden_dim": 32, "out_dim": 16}
    with torch.device("meta"):
        pretrained = whole.network(config).state_dict()
    student = {f"module.{name}": value for name, value in pretrained.items()}
    # The teacher of some versions has nothing to restore with.
    teacher = {name: value for name, value in student.items() if "head_recons" not in name}
    assert fit(sit, "demo", [{"student": student, "teacher": teacher}]).exact
    assert fit(sit, "demo", [{"student": student, "teacher": student}]).exact
    lacking = fit(sit, "demo", [{"teacher": teacher}])
    assert all(name.startswith("head_recons.") for name in lacking.missing)

    old = sit.config("base-2021")
    with torch.device("meta"):
        state = sit.network(old).state_dict()
    losses = {name: torch.ones(()) for name in ("rot_w", "contrastive_w", "recons_w")}
    assert fit(sit, "base-2021", [{"model": {**state, **losses}}]).exact


def test_the_x_ray_encoders_take_files_of_the_pretraining_and_of_classifiers() -> None:
    encoder = architecture("mae-thorax-encoder")
    with torch.device("meta"):
        mae = architecture("mae-thorax-reconstruction")
        pretrained = mae.network(mae.config("vit-small")).state_dict()
        classifier = architecture("mae-thorax")
        fine_tuned = classifier.network(classifier.config("vit-small-nih")).state_dict()
    assert fit(encoder, "vit-small", [{"model": pretrained}]).exact
    assert fit(encoder, "vit-small-fine-tuned", [{"model": fine_tuned}]).exact
    assert not fit(encoder, "vit-small", [{"model": fine_tuned}]).exact


def test_an_x_ray_s_vector_is_what_the_classifier_s_head_reads() -> None:
    encoder, classifier = architecture("mae-thorax-encoder"), architecture("mae-thorax")
    torch.manual_seed(0)
    network = classifier.network(classifier.config("demo")).eval()
    config = encoder.config("demo") | {"fine_tuned": True}
    bare = encoder.network(config).eval()
    bare.load_state_dict(encoder.translate(network.state_dict(), config))
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        vector, features = bare.represent(image)
        torch.testing.assert_close(network.head(vector), network(image))
    assert features.shape == (2, 8, 8, 96)
