"""ED-ViT: the fusion of sub-models' features, and structured pruning."""

from __future__ import annotations

import pytest
import torch

from models.acceleration.ed_vit_network import Fusion, SplitConfig, SplitViT, features, reduced

SMALL = SplitConfig(
    parts=2,
    num_classes=3,
    hidden=None,
    distilled=True,
    image_size=8,
    patch_size=4,
    embed_dim=4,
    depth=1,
    num_heads=2,
    mlp_ratio=2.0,
)


@torch.inference_mode()
def test_fusion_classifies_the_features_in_their_order() -> None:
    fusion = Fusion(SplitConfig(parts=2, num_classes=2, hidden=1, embed_dim=1))
    fusion.cls_mlp.weight.copy_(torch.tensor([[2.0, -3.0]]))
    fusion.cls_classifier.weight.copy_(torch.tensor([[1.0], [10.0]]))
    for layer in (fusion.cls_mlp, fusion.cls_classifier):
        layer.bias.fill_(1)
    # 2 * 1 - 3 * 2 + 1 = -3, which no activation cuts off.
    logits = fusion([torch.tensor([[[1.0]]]), torch.tensor([[[2.0]]])])
    assert logits.tolist() == [[-2, -29]]


@torch.inference_mode()
def test_pruned_parts_are_as_if_multiplied_with_zero() -> None:
    torch.manual_seed(0)
    network = SplitViT(SMALL).eval()
    image = torch.rand(2, 3, 8, 8)
    assert network(image).shape == (2, 3)
    backbone = network.sub_models.backbones[0]
    torch.nn.init.normal_(backbone.blocks[0].attn.qkv.weight)
    torch.nn.init.normal_(backbone.blocks[0].mlp.fc1.weight)
    smaller = reduced(backbone, heads=[1], units=[0, 5])
    assert smaller.blocks[0].attn.qkv.weight.shape == (6, 4)
    assert smaller.blocks[0].mlp.fc1.weight.shape == (2, 4)
    assert not torch.allclose(features(smaller, image), features(backbone, image))
    backbone.blocks[0].attn.proj.weight[:, :2] = 0
    backbone.blocks[0].mlp.fc2.weight[:, [1, 2, 3, 4, 6, 7]] = 0
    torch.testing.assert_close(features(smaller, image), features(backbone, image))
    with pytest.raises(ValueError, match="heads to keep"):
        reduced(backbone, heads=[2], units=[0])
