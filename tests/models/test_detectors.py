"""Detectors: their backbones against other implementations, their answers, published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import RTDetrImageProcessor, SwinBackbone, SwinConfig

from models.detection._mask_rcnn import MaskRCNN
from models.detection._region_heads import CascadeHeads
from models.detection.rt_detr import RTDetr, RTDetrArchitecture
from models.layers.detector import Detector
from models.layers.swin_pyramid import SwinPyramid
from models.registry import architecture
from models.serving import Device, InvalidInput
from models.weights.fit import fit
from service.triton.cards import Card, WeightsRecord
from tests.models.test_every_architecture import state_of

SMALL_RT_DETR: Mapping[str, Any] = {
    "backbone": {
        "depths": (1, 1, 1, 1),
        "layer_type": "basic",
        "embedding_size": 8,
        "hidden_sizes": (8, 8, 16, 16),
    },
    "network": {
        "encoder_in_channels": (8, 16, 16),
        "encoder_hidden_dim": 16,
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_in_channels": (16, 16, 16),
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "d_model": 16,
        "decoder_layers": 1,
        "hidden_expansion": 0.5,
    },
    "num_classes": 5,
}


def demo_card() -> Card:
    return architecture("convnext-detection").card("demo", weights=WeightsRecord(kind="random"))


@pytest.fixture(scope="module")
def detector() -> Detector:
    """The demo variant with random weights, which finds something everywhere."""
    made = architecture("convnext-detection")
    network = made.network(made.config("demo")).eval()
    network.load_state_dict(state_of(made, "demo"))
    return Detector(network, demo_card(), Device())


def pictures(count: int, height: int = 96, width: int = 128) -> np.ndarray:
    stream = np.random.default_rng(0)
    return stream.integers(0, 256, (count, 3, height, width)).astype(np.uint8)


def test_a_swin_backbone_equals_transformers_where_windows_do_not_fit() -> None:
    ours = SwinPyramid(8, (2, 2, 2), (2, 2, 4), window=4).eval()
    stages = ["stage1", "stage2", "stage3"]
    theirs = SwinBackbone(
        SwinConfig(
            embed_dim=8,
            depths=[2, 2, 2],
            num_heads=[2, 2, 4],
            window_size=4,
            drop_path_rate=0.0,
            out_features=stages,
        )
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    missing, unexpected = theirs.load_state_dict(_transformers(ours.state_dict()), strict=False)
    assert not unexpected
    # The last one's result is not among the maps.
    assert all("relative_position_index" in n or n.startswith("swin.layernorm") for n in missing)
    image = torch.randn(2, 3, 52, 76)
    with torch.inference_mode():
        maps, expected = ours(image), theirs(image).feature_maps
    for found, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, other, atol=2e-4, rtol=1e-4)


def _transformers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the authors' entries under the names of transformers' backbone."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("norm"):
            stage, _, leaf = name.removeprefix("norm").partition(".")
            renamed[f"hidden_states_norms.stage{int(stage) + 1}.{leaf}"] = tensor
            continue
        if ".qkv." in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[_swin_name(name).replace(".attn.qkv.", f".attention.{part}_proj.")] = third
            continue
        renamed[_swin_name(name)] = tensor
    return renamed


def _swin_name(name: str) -> str:
    for old, new in (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("patch_embed.norm", "embeddings.norm"),
        ("layers.", "encoder.layers."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".attn.proj.", ".attention.o_proj."),
        (".attn.relative", ".attention.relative_position_bias.relative"),
    ):
        name = name.replace(old, new)
    return f"swin.{name}"


def test_answers_have_the_shapes_of_the_task(detector: Detector) -> None:
    answer = detector.predict({"IMAGE": pictures(2), "THRESHOLD": np.float32([[0.0], [0.0]])})
    boxes, masks = answer["BOXES"], answer["MASKS"]
    assert boxes.shape == (2, 100, 4)
    assert (masks.shape, masks.dtype) == ((2, 100, 28, 28), np.uint8)
    assert (answer["CLASSES"].dtype, answer["SCORES"].dtype) == (np.int32, np.float32)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert (np.diff(answer["SCORES"]) <= 0).all()
    assert answer["CLASSES"].max() < len(demo_card().labels)


def test_each_picture_of_a_batch_has_its_own_limits(detector: Detector) -> None:
    image = pictures(3)
    limits = {
        "THRESHOLD": np.float32([[0.0], [0.9999], [0.0]]),
        "MAX_DETECTIONS": np.int32([[5], [5], [12]]),
    }
    together = detector.predict({"IMAGE": image} | limits)
    assert (together["SCORES"] > 0).sum(1).tolist() == [5, 0, 12]
    assert not together["BOXES"][1].any()
    alone = detector.predict({"IMAGE": image[2:]} | {k: v[2:] for k, v in limits.items()})
    np.testing.assert_allclose(together["SCORES"][2], alone["SCORES"][0], atol=1e-5)
    np.testing.assert_allclose(together["BOXES"][2], alone["BOXES"][0], atol=1e-4)
    nothing = detector.predict({"IMAGE": image[:1], "THRESHOLD": np.float32([[1.0]])})
    assert nothing["SCORES"].tolist() == [[0.0]]
    assert nothing["MASKS"].shape == (1, 1, 28, 28)


@pytest.mark.parametrize("size", [(1, 128), (128, 2), (33, 47)])
def test_any_form_of_picture(detector: Detector, size: tuple[int, int]) -> None:
    answer = detector.predict({"IMAGE": pictures(1, *size), "THRESHOLD": np.float32([[0.0]])})
    assert np.isfinite(answer["BOXES"]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("THRESHOLD", np.float32([[1.5]])),
        ("MAX_DETECTIONS", np.int32([[0]])),
        ("THRESHOLD", np.float32([[np.nan]])),
    ],
)
def test_limits_outside_of_the_card_s_are_refused(
    detector: Detector, name: str, value: np.ndarray
) -> None:
    with pytest.raises(InvalidInput, match=f"{name.lower()} .*this model takes"):
        detector.predict({"IMAGE": pictures(1), name: value})


def test_a_thousand_detections(detector: Detector) -> None:
    limits = {"THRESHOLD": np.float32([[0.0]]), "MAX_DETECTIONS": np.int32([[1000]])}
    answer = detector.predict({"IMAGE": pictures(1), **limits})
    assert answer["MASKS"].shape == (1, 1000, 28, 28)


@pytest.mark.parametrize("classes", [36, 7])
def test_a_checkpoint_of_convnext_s_authors_fits(classes: int) -> None:
    """Their names, inside mmdetection's wrapper, also with classes of one's own."""
    made = architecture("convnext-detection")
    state = {}
    for name, tensor in made.network(made.config("demo", classes)).state_dict().items():
        for timm, theirs in (
            ("backbone.stem.", "backbone.downsample_layers.0."),
            (".mlp.fc", ".pwconv"),
            (".conv_dw.", ".dwconv."),
            (".blocks.", "."),
        ):
            name = name.replace(timm, theirs)
        if ".downsample." in name:
            name = name.replace("stages", "downsample_layers").replace(".downsample.", ".")
        state[name] = tensor
    fitted = fit(made, "demo", [{"meta": {"epoch": 36}, "state_dict": state}])
    assert fitted.exact, fitted.explanation()
    assert fitted.config["num_classes"] == classes
    del state["rpn_head.rpn_cls.bias"]
    assert fit(made, "demo", [{"state_dict": state}]).missing == ("rpn_head.rpn_cls.bias",)


@pytest.fixture(scope="module")
def rt_detr() -> RTDetr:
    torch.manual_seed(0)
    network = RTDetr(SMALL_RT_DETR).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # Fresh ones give all queries the same scores.
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def test_rt_detr_answers_as_transformers_does(rt_detr: RTDetr) -> None:
    image = torch.rand(1, 3, 160, 160)
    with torch.inference_mode():
        (found,) = rt_detr(image, [0.0], [50])
        raw = rt_detr.detr(pixel_values=image)
    (expected,) = RTDetrImageProcessor().post_process_object_detection(
        raw, threshold=0.0, target_sizes=[(160, 160)]
    )
    torch.testing.assert_close(found.scores, expected["scores"][:50])
    torch.testing.assert_close(found.boxes, expected["boxes"][:50])
    assert found.masks is None


def test_a_file_of_the_hub_fits(rt_detr: RTDetr, tmp_path: Path) -> None:
    rt_detr.detr.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert any(".encoder.encoder.0.layers.0.self_attn.out_proj." in name for name in state)
    translated = RTDetrArchitecture().translate(state, SMALL_RT_DETR)
    own = rt_detr.state_dict()
    assert translated.keys() == own.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in translated.items())


def test_a_cascade_of_equal_heads_that_correct_nothing_is_one_of_them() -> None:
    torch.manual_seed(0)
    cascade = CascadeHeads((4, 8, 16, 32), 8, 16, 5, 1).eval()
    for heads in (cascade.bbox_head, cascade.mask_head):
        for head in heads[1:]:
            head.load_state_dict(heads[0].state_dict())
    for head in cascade.bbox_head:
        nn.init.zeros_(head.fc_reg.weight)
        nn.init.zeros_(head.fc_reg.bias)
    levels = [torch.randn(1, 8, 64 // s, 96 // s) for s in (1, 2, 4, 8)]
    rois = torch.tensor([[0.0, 10, 12, 90, 70], [0, 100, 40, 380, 250]])
    classes = torch.tensor([1, 4])
    with torch.inference_mode():
        regions, logits, corrections = cascade.judged(levels, rois, (256, 384))
        expected, _ = cascade.bbox_head[0](cascade.regions(levels, rois, 7))
        masks = cascade.masks(levels, rois, classes)
        drawn = cascade.mask_head[0](cascade.regions(levels, rois, 14)).sigmoid()
    torch.testing.assert_close(regions, rois)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(masks, drawn[torch.arange(2), classes])
    assert not corrections.any()


def test_later_heads_of_a_cascade_see_what_earlier_ones_corrected() -> None:
    cascade = CascadeHeads((4, 8, 16, 32), 8, 16, 5, 1).eval()
    for head in cascade.bbox_head:
        nn.init.zeros_(head.fc_reg.weight)
        nn.init.zeros_(head.fc_reg.bias)
        with torch.no_grad():
            head.fc_reg.bias[0::4] = (
                1.0  # A tenth of the width to the right, and less of later heads.
            )
    levels = [torch.randn(1, 8, 64 // s, 96 // s) for s in (1, 2, 4, 8)]
    with torch.inference_mode():
        rois, _, last = cascade.judged(levels, torch.tensor([[0.0, 100, 10, 200, 110]]), (256, 384))
    assert rois[0].tolist() == pytest.approx([0, 115, 10, 215, 110])
    torch.testing.assert_close(last[0, :, 0], torch.full((5,), 0.1 / 3))


DENSE = [
    (slug, variant)
    for slug in ("swin-detection", "convnext-detection", "vit-comer")
    for variant in {
        repr(v.config): name for name, v in architecture(slug).variants.items()
    }.values()
]


@pytest.mark.slow
@pytest.mark.parametrize(("slug", "variant"), DENSE, ids=map(":".join, DENSE))
def test_every_published_detector_has_levels_and_heads_that_fit(slug: str, variant: str) -> None:
    """On the meta device, where shapes cost nothing."""
    made = architecture(slug)
    config = made.config(variant)
    with torch.device("meta"), torch.inference_mode():
        network = made.network(config).eval()
        assert isinstance(network, MaskRCNN)
        levels = network.pyramid(torch.empty(1, 3, 224, 320))
        said = network.rpn_head(levels)
        head = network.roi_head.bbox_head
        first = head[0] if isinstance(head, nn.ModuleList) else head
        logits, corrections = first(torch.empty(2, levels[0].shape[1], 7, 7))
    assert [tuple(x.shape[2:]) for x in levels] == [(56, 80), (28, 40), (14, 20), (7, 10), (4, 5)]
    assert all(4 * x.shape[1] == c.shape[1] for x, c in said)
    classes = config["num_classes"]
    assert (logits.shape[1], corrections.shape[1]) == (classes + 1, 4 * classes)
    assert len(made.variants[variant].labels) == classes
