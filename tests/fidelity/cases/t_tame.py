"""T-TAME: the three feature maps, the scores, and the map of the most probable class."""

from __future__ import annotations

from math import isqrt

import torch
from torch.nn import functional as F

from models.layers.explained import spread
from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    ttame = architecture("t-tame")
    config = _config(golden)
    official = {f"generic.{name}": value for name, value in golden.weights().items()}
    network = load(ttame.network(config), ttame.translate({"state_dict": official}, config))
    image = golden.input("image")
    if golden.config.get("train_method") == "raw_normalize":
        # Those networks normalise by themselves; served ones are given normalised pictures.
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        image_normal = (image - mean[:, None, None]) / std[:, None, None]
    else:
        image_normal = image
    logits, features = network.features(image_normal)
    maps = network.attn_mech(features)
    class_map = maps[torch.arange(len(image)), logits.argmax(1)]
    _, chosen = network.explain(image_normal, torch.full((len(image),), -1))
    assert torch.allclose(chosen, class_map, rtol=1e-4, atol=1e-4 * float(class_map.std()))
    shown = spread(chosen)[:, None]
    return {
        **{f"feature{i}": feature for i, feature in enumerate(features)},
        "logits": logits,
        "map_logits": maps,
        "class_map": chosen[:, None],
        "map_0_1": shown,
        "map_224": F.interpolate(shown, image.shape[2:], mode="bilinear", align_corners=False),
    }


def _config(golden: Golden) -> dict[str, object]:
    shapes = dict(golden.state)
    branch = "attn_mech.1." if "attn_mech.1.fuser.weight" in shapes else "attn_mech."
    count = golden.count(rf"{branch.replace('.', '[.]')}convs\.(\d+)\.")
    config: dict[str, object] = {
        "backbone": golden.config["model_name"],
        "layers": golden.config["layers"],
        "channels": [golden.shape(f"{branch}convs.{i}.weight")[0] for i in range(count)],
        "attention": golden.config["attention_version"],
        "num_classes": golden.shape(f"{branch}fuser.weight")[0],
    }
    if "body.encoder.pos_embedding" in shapes:
        patch = golden.shape("body.conv_proj.weight")[-1]
        config["image_size"] = patch * isqrt(golden.shape("body.encoder.pos_embedding")[1] - 1)
    return config
