"""GenConViT: sizes, names of published checkpoints, noise and scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.deepfake.genconvit import UNUSED
from models.layers.noise import noise
from models.registry import architecture
from models.runtimes.choice import accelerate
from models.serving import Device, InvalidInput, Predictor
from service.triton.cards import WeightsRecord

GENCONVIT = architecture("genconvit")
GOLDEN = Path(__file__).parents[1] / "golden"


def _official(member: str) -> dict[str, torch.Tensor]:
    state = json.loads((GOLDEN / f"genconvit-{member}.json").read_text())["state"]
    return {name: torch.empty(shape, device="meta") for name, shape in state}


def _wanted(variant: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = GENCONVIT.network(GENCONVIT.config(variant))
    return {n: t.shape for n, t in network.state_dict().items() if t.is_floating_point()}


@pytest.mark.parametrize("member", ["ed", "vae"])
def test_official_checkpoint_fits(member: str) -> None:
    official = _official(member)
    config = GENCONVIT.config(member)
    for checkpoint in (official, {"epoch": 9, "state_dict": official, "min_loss": 0.1}):
        translated = GENCONVIT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == _wanted(member)
    assert GENCONVIT.translate(translated, config).keys() == translated.keys()


def test_both_checkpoints_make_the_pair() -> None:
    config = GENCONVIT.config("both")
    merged = GENCONVIT.translate(_official("ed"), config)
    merged |= GENCONVIT.translate(_official("vae"), config)
    assert {n: t.shape for n, t in merged.items()} == _wanted("both")


def test_checkpoint_of_the_other_network_is_refused() -> None:
    with pytest.raises(ValueError, match="'vae'"):
        GENCONVIT.translate(_official("vae"), GENCONVIT.config("ed"))


@pytest.mark.parametrize(("variant", "millions"), [("ed", 30.2), ("vae", 344.5)])
def test_only_what_matters_is_built(variant: str, millions: float) -> None:
    with torch.device("meta"):
        network = GENCONVIT.network(GENCONVIT.config(variant))
    count = sum(p.numel() for p in network.parameters())
    assert round(count / 1e6, 1) == millions
    assert not any(n.partition(".")[2].startswith(UNUSED) for n in network.state_dict())


def test_demo_networks_are_small() -> None:
    network = GENCONVIT.network(GENCONVIT.config("demo"))
    assert sum(p.numel() for p in network.parameters()) <= 500_000


def test_card() -> None:
    card = GENCONVIT.card("both", weights=WeightsRecord(kind="official"))
    assert card.labels == ("real", "fake")
    assert card.members == ("ed", "vae")
    assert card.thresholds == {"fake": 0.5}
    assert card.licence.commercial is False
    assert {m.dataset for m in card.metrics if m.name == "accuracy" and m.value > 90} == {
        "DFDC",
        "FaceForensics++",
        "DeepfakeTIMIT",
        "Celeb-DF v2",
    }


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = GENCONVIT.network(GENCONVIT.config("demo"))
    with torch.no_grad():
        # As initialised the scores hardly depend on the face.
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return network.eval()


def _served(network: torch.nn.Module, device: Device | None = None) -> Predictor:
    card = GENCONVIT.card("demo", weights=WeightsRecord(kind="random"))
    served = GENCONVIT.serve(network, card, device or Device(), Path())
    assert isinstance(served, Predictor)
    return served


def _faces(count: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, 3, 112, 112), dtype=np.uint8)


def test_scores_are_real_and_fake_averaged_over_the_networks(network) -> None:
    faces = _faces(3)
    answer = _served(network).predict({"FACES": faces, "SEED": np.full((3, 1), 7)})
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = (faces / 255 - mean[:, None, None]) / std[:, None, None]
    noise = torch.randn(128, generator=torch.Generator().manual_seed(7)).expand(3, -1)
    with torch.inference_mode():
        logits = network(torch.tensor(image, dtype=torch.float32), noise)
    assert logits.shape == (3, 2, 2)
    members = 1 / (1 + np.exp(-logits.double().numpy()))
    fake_first = answer["MEMBERS"][..., ::-1]
    np.testing.assert_allclose(fake_first, members, atol=1e-5)
    np.testing.assert_allclose(answer["SCORES"], members.mean(1)[:, ::-1], atol=1e-5)
    assert answer["SCORES"].dtype == answer["MEMBERS"].dtype == np.float32


def test_batch_equals_single_for_any_seeds(network) -> None:
    served = _served(network)
    faces, seeds = _faces(4), np.array([[0], [-3], [2**62], [11]])
    together = served.predict({"FACES": faces, "SEED": seeds})
    for i in range(4):
        alone = served.predict({"FACES": faces[i : i + 1], "SEED": seeds[i : i + 1]})
        for name in together:
            np.testing.assert_allclose(alone[name][0], together[name][i], atol=1e-5)


def test_seed_moves_the_variational_network_only(network) -> None:
    served = _served(network)
    faces = np.repeat(_faces(1), 3, axis=0)
    members = served.predict({"FACES": faces, "SEED": np.array([[0], [1], [0]])})["MEMBERS"]
    assert members[0, 0] == pytest.approx(members[1, 0], abs=1e-6)
    assert np.abs(members[0, 1] - members[1, 1]).max() > 1e-5
    assert members[0] == pytest.approx(members[2], abs=1e-6)


def test_seed_is_zero_without_one(network) -> None:
    served = _served(network)
    faces = _faces(2)
    given = served.predict({"FACES": faces, "SEED": np.zeros((2, 1), np.int64)})
    np.testing.assert_array_equal(served.predict({"FACES": faces})["SCORES"], given["SCORES"])


def test_single_networks() -> None:
    for name in ("ed", "vae"):
        config = GENCONVIT.config("demo")
        config.pop({"ed": "vae", "vae": "ed"}[name])
        card = GENCONVIT.card("demo", weights=WeightsRecord(kind="random"))
        served = GENCONVIT.serve(GENCONVIT.network(config).eval(), card, Device(), Path())
        answer = served.predict({"FACES": _faces(1)})
        assert answer["MEMBERS"].shape == (1, 1, 2)
        np.testing.assert_array_equal(answer["MEMBERS"][:, 0], answer["SCORES"])


def test_latent_is_drawn_with_the_mean_as_log_variance(network) -> None:
    mean, noise = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.5, -1.0]])
    expected = [[1.5, 2.0 - float(np.exp(1.0))]]
    assert network.vae.draw(mean, noise).tolist() == [pytest.approx(expected[0])]


def test_bfloat16_stays_close() -> None:
    faces = _faces(4)
    answers = []
    for device in (Device(), Device("cpu", torch.bfloat16)):
        torch.manual_seed(3)
        network = GENCONVIT.network(GENCONVIT.config("demo")).eval()
        answers.append(_served(network, device).predict({"FACES": faces})["SCORES"])
    assert answers[1].dtype == np.float32
    np.testing.assert_allclose(answers[1], answers[0], atol=0.02)


def test_the_exported_network_needs_no_torch_and_draws_the_same_noise(
    network: torch.nn.Module, tmp_path: Path
) -> None:
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    card = GENCONVIT.card("demo", weights=WeightsRecord(kind="random"))
    faces, seeds = _faces(3), np.array([[0], [7], [-1]])
    expected = _served(network).predict({"FACES": faces, "SEED": seeds})
    np.savez(tmp_path / "batch.npz", FACES=faces, SEED=seeds)
    chosen = accelerate(card, tmp_path, precision="float32")
    assert chosen.runtime == "openvino"
    (tmp_path / "card.json").write_text(chosen.model_dump_json())
    program = """
import sys
from pathlib import Path
import numpy as np
from models.runtimes.openvino import load
from service.triton.cards import Card
folder = Path(sys.argv[1])
served = load(Card.model_validate_json((folder / "card.json").read_text()), folder)
np.savez(folder / "answer.npz", **served.predict(dict(np.load(folder / "batch.npz"))))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    answer = dict(np.load(tmp_path / "answer.npz"))
    assert answer.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(answer[name], array, atol=1e-4)
    others = _served(network).predict({"FACES": faces})
    assert np.abs(others["MEMBERS"] - expected["MEMBERS"]).max() > 1e-3


def test_noise_is_torchs() -> None:
    for seed, size in ((0, 16), (7, 128), (-3, 12544), (2**62 + 5, 128)):
        expected = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        np.testing.assert_allclose(noise(seed, size), expected, atol=1e-5)
    assert noise(7, 24)[:16].tolist() == noise(7, 128)[:16].tolist()


def test_other_size_is_refused(network) -> None:
    with pytest.raises(InvalidInput, match=r"\[3, 112, 112\]"):
        _served(network).predict({"FACES": np.zeros((1, 3, 224, 224), np.uint8)})
