"""T-TAME: Trainable Attention Mechanism for Explanations (https://arxiv.org/abs/2403.04523).

A classifier whose weights stay as they are gets a small branch beside it: three of its feature maps,
each through a 1x1 convolution with a residual connection, are brought to one size, stacked, and mixed
by a last 1x1 convolution into one map a class. So one forward pass gives the scores and, for every
class, where in the picture its evidence lies. The classifiers are torchvision's VGG-16, ResNet-50 and
ViT-B/16; the branch is written here after the authors' code. The tokens of a ViT become maps first,
without the class token (`TAME`) or multiplied by it (`TTAME`). Weights are those of the authors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.explained import named, spread, wanted_classes
from models.layers.pixels import Normalisation
from models.layers.precision import convert
from models.registry import register
from models.serving import Arrays, Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PUBLISHED = "hf://IDT-ITI/T-TAME-models/checkpoints"
_LARGEST_SIDE = 56


class TokensToMaps(nn.Module):
    """Token sequences [B, 1 + N, C], the class token first, as square maps [B, C, sqrt N, sqrt N]."""

    def __init__(self, times_class_token: bool) -> None:
        super().__init__()
        self.times_class_token = times_class_token

    def forward(self, sequences: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        maps = []
        for tokens in sequences:
            patches = tokens[:, 1:]  # B, N, C
            if self.times_class_token:
                patches = patches * tokens[:, :1]
            side = isqrt(patches.shape[1])
            maps.append(patches.mT.unflatten(2, (side, side)))
        return maps


class AttentionBranch(nn.Module):
    """Feature maps [B, C_i, h_i, w_i] to one map a class, of the first one's height (56 at most)."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, c, kernel_size=1) for c in channels)
        self.bns = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.fuser = nn.Conv2d(sum(channels), num_classes, kernel_size=1)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.fuser(self.stacked(features))  # B, classes, h, w

    def of_class(self, features: Sequence[torch.Tensor], classes: torch.Tensor) -> torch.Tensor:
        """Return the map [B, h, w] of one class for each picture, without computing the others."""
        stacked = self.stacked(features)
        weight = self.fuser.weight[classes].flatten(1).to(stacked.dtype)  # B, C
        maps = torch.einsum("bchw,bc->bhw", stacked, weight)
        assert self.fuser.bias is not None
        return maps + self.fuser.bias[classes, None, None]

    def stacked(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the attended feature maps at one size, one after the other: [B, sum of C_i, h, w]."""
        side = min(features[0].shape[-2], _LARGEST_SIDE)
        attended = [
            F.interpolate(
                F.relu(bn(conv(x)) + x), (side, side), mode="bilinear", align_corners=False
            )
            for conv, bn, x in zip(self.convs, self.bns, features, strict=True)
        ]
        return torch.cat(attended, dim=1)


class ExplainedClassifier(nn.Module):
    """A classifier with its attention branch: [B, 3, H, W] to logits [B, classes] and maps [B, classes, h, w].

    `body`, `attn_mech` and what is in them have the names of the authors' checkpoints. `layers` are
    the modules of the body whose outputs are the feature maps. `tokens`: the body is a ViT.
    """

    def __init__(
        self,
        body: nn.Module,
        layers: Sequence[str],
        channels: Sequence[int],
        num_classes: int,
        attention: str,
        tokens: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body = body
        branch = AttentionBranch(channels, num_classes)
        self.attn_mech = (
            nn.Sequential(TokensToMaps(attention == "TTAME"), branch) if tokens else branch
        )
        self._taps = [body.get_submodule(layer_path(name)) for name in layers]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, features = self.features(image)
        return logits, self.attn_mech(features)

    def explain(
        self, image: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and the map [B, h, w] of the class `wanted` [B]; -1 is the most probable one."""
        logits, features = self.features(image)
        classes = torch.where(wanted < 0, logits.argmax(1), wanted)
        if isinstance(self.attn_mech, AttentionBranch):
            return logits, self.attn_mech.of_class(features, classes)
        to_maps, branch = self.attn_mech
        assert isinstance(branch, AttentionBranch)
        return logits, branch.of_class(to_maps(features), classes)

    def features(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the body's logits and the outputs of the layers that are looked at."""
        with _outputs(self._taps) as found:
            logits = self.body(image)
        return logits, found


def layer_path(name: str) -> str:
    """Return the path of the module that the authors call `name`.

    They name layers by torchvision's graph, where `ln` of an encoder block is the LayerNorm before its
    self-attention.
    """
    return f"{name}_1" if name.endswith(".ln") else name


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collect what the modules, which run in this order, give while the block runs."""
    found: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        for module in modules
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Explainer(Predictor):
    """IMAGE `uint8` [B, 3, H, W] and CLASS [B, 1] to SCORES [B, classes], HEATMAP [B, h, w] and METHOD.

    The map is that of the fused feature maps before any activation, spread to 0..1 for each picture,
    as the authors show it.
    """

    method = "t-tame"

    def __init__(self, network: ExplainedClassifier, card: Card, device: Device) -> None:
        assert card.image is not None
        self._network = convert(network, device)
        self._normalise = Normalisation(card.image, device)
        self._device = device

    @torch.inference_mode()
    def predict(self, batch: Arrays) -> Arrays:
        image = self._normalise(batch["IMAGE"])
        wanted = wanted_classes(batch, len(image), self._network.num_classes)
        with self._device.autocast():
            logits, maps = self._network.explain(image, wanted.to(image.device))
        return {
            "SCORES": logits.float().softmax(-1).cpu().numpy(),
            "HEATMAP": spread(maps.float()).cpu().numpy(),
            "METHOD": named(self.method, len(image)),
        }


# backbone: (layers of the feature maps, their channels); the authors' names of the layers.
_PUBLISHED: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "vgg16": (("features.16", "features.23", "features.30"), (256, 512, 512)),
    "resnet50": (("layer2", "layer3", "layer4"), (512, 1024, 2048)),
    "vit_b_16": (
        tuple(f"encoder.layers.encoder_layer_{i}.ln" for i in (9, 10, 11)),
        (768, 768, 768),
    ),
}
_UNVERIFIED = (
    "Whether the authors' ViT file was trained with plain tokens or with tokens times the class token "
    "stands in the file; a variant takes only a file that is its own.",
)


def _published(backbone: str, attention: str = "TAME", notes: tuple[str, ...] = ()) -> Variant:
    layers, channels = _PUBLISHED[backbone]
    suffix = "-class-token" if attention == "TTAME" else ""
    return Variant(
        backbone.replace("_", "-") + suffix,
        config={
            "backbone": backbone,
            "layers": layers,
            "channels": channels,
            "attention": attention,
            "num_classes": 1000,
        },
        image=imagenet.evaluation(224, interpolation="bilinear"),
        labels=imagenet.labels(),
        sources=(Source(f"{PUBLISHED}/{backbone}_TTAME.ckpt"),),
        notes=notes,
    )


def _variants() -> dict[str, Variant]:
    variants = (
        Variant(
            "demo",
            config={
                "backbone": {
                    "image_size": 64,
                    "patch_size": 8,
                    "num_layers": 5,
                    "num_heads": 3,
                    "hidden_dim": 96,
                    "mlp_dim": 192,
                },
                "layers": tuple(f"encoder.layers.encoder_layer_{i}.ln" for i in (2, 3, 4)),
                "channels": (96, 96, 96),
                "attention": "TAME",
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        ),
        _published("vgg16"),
        _published("resnet50"),
        _published("vit_b_16", notes=_UNVERIFIED),
        _published("vit_b_16", "TTAME", notes=_UNVERIFIED),
    )
    return {variant.name: variant for variant in variants}


@register
class TTameArchitecture(Architecture):
    """T-TAME for the explanation of three classifiers of ImageNet."""

    slug = "t-tame"
    title = "T-TAME"
    task = Task.EXPLANATION
    paper = Paper(
        slug="t-tame",
        title="T-TAME: Trainable Attention Mechanism for Explaining Convolutional Networks and Vision Transformers",
        year=2024,
        arxiv="2403.04523",
    )
    origin = "own"
    licence = Licence(
        code="academic, non-commercial", weights="academic, non-commercial", commercial=False
    )
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build `backbone`, one of torchvision's by its name (a ViT for pictures of `image_size`) or a ViT
        by its sizes, and the branch for `layers` of `channels`; `attention` is `TAME` or `TTAME`."""
        classes = config["num_classes"]
        backbone = config["backbone"]
        if isinstance(backbone, str):
            sized = {"image_size": config.get("image_size", 224)} if _is_vit(config) else {}
            body = get_model(backbone, weights=None, num_classes=classes, **sized)
        else:
            body = VisionTransformer(**backbone, num_classes=classes)
        return ExplainedClassifier(
            body,
            config["layers"],
            config["channels"],
            classes,
            config["attention"],
            tokens=isinstance(body, VisionTransformer),
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Take the network out of a checkpoint of the authors' training.

        There it lies under `generic.`, and the classifier a second time in a helper of the training.
        Raises ValueError if the checkpoint says that it was trained with the other kind of tokens; of a
        ViT the bare `generic.` tensors, which say nothing of it, keep their names and do not fit.
        """
        trained = checkpoint.get("hyper_parameters")
        if isinstance(trained, Mapping) and _is_vit(config):
            said = trained.get("attention_version", config["attention"])
            if said != config["attention"]:
                raise ValueError(f"trained with {said}, not {config['attention']}")
        state = unwrapped(checkpoint)
        told = not _is_vit(config) or "state_dict" in checkpoint
        if told and any(name.startswith("generic.") for name in state):
            state = {
                name.removeprefix("generic."): value
                for name, value in state.items()
                if name.startswith("generic.")
            }
        return {n: v for n, v in state.items() if not n.startswith("arrangement.")}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        assert isinstance(network, ExplainedClassifier)
        return Explainer(network, card, device)


def _is_vit(config: Mapping[str, Any]) -> bool:
    return not isinstance(config["backbone"], str) or "vit" in config["backbone"]
