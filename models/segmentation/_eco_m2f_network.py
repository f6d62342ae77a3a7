"""Mask2Former whose pixel decoder stops early: transformers' network, with a gate before its deformable encoder.

Importing this imports transformers, which takes seconds: only those who build the network should.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerModel, SwinConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoderEncoderOnly

from models.layers.segmenter import Segmentation
from models.segmentation._mask2former_merging import Masks, Merging, panoptic
from models.serving import InvalidInput

# Sides of what the network takes are multiples of it.
STRIDE = 32


class GatedEncoder(nn.Module):
    """The deformable encoder, of whose layers each picture gets as many as `depths` [B] says."""

    def __init__(self, encoder: Mask2FormerPixelDecoderEncoderOnly, first_exit: int) -> None:
        super().__init__()
        self.layers = encoder.layers
        self.first_exit = first_exit
        self.gate = nn.Linear(encoder.config.feature_size, len(self.layers) - first_exit + 1)
        # Of the batch under way: transformers' pixel decoder hands no argument on.
        self.depths = torch.empty(0, dtype=torch.int64)

    def logits(self, projected: Tensor) -> Tensor:
        """Judge the depths [B, exits] by the coarsest map [B, C, h, w] as projected for the encoder."""
        return self.gate(projected.mean((2, 3)))

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_embeddings: Tensor,
        spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        valid_ratios: Tensor,
        **_: Any,
    ) -> BaseModelOutput:
        """Map tokens [B, N, C]. A picture that has left the encoder stays as it is, whoever else is in the batch."""
        places = Mask2FormerPixelDecoderEncoderOnly.get_reference_points(
            spatial_shapes_list, valid_ratios, device=inputs_embeds.device
        )
        tokens = inputs_embeds
        for index, layer in enumerate(self.layers):
            running = (self.depths > index).nonzero()[:, 0].to(tokens.device)
            if not len(running):
                break
            (made,) = layer(
                tokens[running],
                attention_mask[running],
                position_embeddings=position_embeddings[running],
                reference_points=places[running],
                spatial_shapes_list=spatial_shapes_list,
                level_start_index=level_start_index,
            )
            tokens = tokens.index_copy(0, running, made.to(tokens.dtype))
        return BaseModelOutput(last_hidden_state=tokens)


class EcoMask2Former(nn.Module):
    """Normalised pictures [B, 3, H, W], sides multiples of 32, to segments by query.

    Class logits [B, Q, classes + 1], the last one "no object", mask logits [B, Q, H / 4, W / 4], and the depth
    [B] that each picture left the encoder at.
    """

    def __init__(self, config: Mask2FormerConfig, first_exit: int) -> None:
        super().__init__()
        base = Mask2FormerModel(config)
        self.pixel_level_module = base.pixel_level_module
        self.transformer_module = base.transformer_module
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        decoder = self.pixel_level_module.decoder
        decoder.encoder = GatedEncoder(decoder.encoder, first_exit)
        # Norm of an answer that nobody reads.
        self.pixel_level_module.encoder.swin.layernorm = nn.Identity()

    @property
    def encoder(self) -> GatedEncoder:
        return self.pixel_level_module.decoder.encoder

    @property
    def exits(self) -> range:
        """The depths there are."""
        return range(self.encoder.first_exit, len(self.encoder.layers) + 1)

    def forward(self, image: Tensor, depths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`depths` int64 [B], 0 (or None for all) where the gate shall decide."""
        features = self.features(image)
        chosen = self.gate(features).argmax(1) + self.encoder.first_exit
        used = chosen if depths is None else torch.where(depths > 0, depths, chosen)
        (classes, masks) = self.segments(features, used)[-1]
        return classes, masks, used

    def features(self, image: Tensor) -> Sequence[Tensor]:
        """Return the backbone's maps, finest first."""
        maps: Sequence[Tensor] = self.pixel_level_module.encoder(image).feature_maps
        return maps

    def gate(self, features: Sequence[Tensor]) -> Tensor:
        """Return the gate's judgement [B, exits] of the depths in `exits`."""
        return self.encoder.logits(
            self.pixel_level_module.decoder.input_projections[0](features[-1])
        )

    def segments(self, features: Sequence[Tensor], depths: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return class and mask logits with these depths [B] of the encoder: first guesses first, the answer last."""
        self.encoder.depths = depths
        pixels = self.pixel_level_module.decoder(features)
        decoded = self.transformer_module(
            multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features
        )
        states = decoded.intermediate_hidden_states
        masks = decoded.masks_queries_logits
        if not self.training:
            states, masks = states[-1:], masks[-1:]
        return [
            (self.class_predictor(state.transpose(0, 1)), mask)
            for state, mask in zip(states, masks, strict=True)
        ]


@dataclass(frozen=True)
class Prediction:
    """Class logits [Q, K + 1] and mask logits of one picture, and the depth it left the encoder at."""

    classes: Tensor
    masks: Masks
    depth: int


class EcoSegmenter(EcoMask2Former):
    """The network with what it does before and after: filling up to whole strides, merging of queries to segments."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(network_config(config), config["first_exit"])
        self.merging = Merging()
        self.things: tuple[int, ...] = ()

    def predict(self, image: Tensor, depths: Sequence[int]) -> list[Prediction]:
        """Fill normalised pictures [B, 3, h, w] up with zeros, right and below.

        Raises InvalidInput for depths that the encoder does not have.
        """
        for depth in depths:
            if depth and depth not in self.exits:
                raise InvalidInput(
                    f"depth {depth}: this model's encoder runs {self.exits[0]} to {self.exits[-1]} layers, "
                    "and as many as its gate finds right for 0"
                )
        sent = (image.shape[2], image.shape[3])
        below, right = (-side % STRIDE for side in sent)
        wanted = torch.tensor(depths, device=image.device)
        classes, masks, used = self(F.pad(image, (0, right, 0, below)), wanted)
        padded = (sent[0] + below, sent[1] + right)
        return [
            Prediction(logits, Masks(each, sent, padded), depth)
            for logits, each, depth in zip(classes, masks, used.tolist(), strict=True)
        ]

    def decide(self, predicted: Prediction, size: tuple[int, int]) -> Segmentation:
        """Merge the queries to panoptic segments at `size`."""
        made = panoptic(predicted.classes, predicted.masks, size, self.merging, self.things)
        return replace(made, depth=predicted.depth)


def network_config(config: Mapping[str, Any]) -> Mask2FormerConfig:
    """Return transformers' configuration of a variant's sizes."""
    return Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=config["embed_dim"],
            depths=list(config["depths"]),
            num_heads=list(config["num_heads"]),
            window_size=config["window_size"],
            drop_path_rate=0.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=config["dim"],
        mask_feature_size=config["dim"],
        hidden_dim=config["dim"],
        encoder_layers=config["encoder_layers"],
        encoder_feedforward_dim=config["encoder_ffn"],
        # The prediction before the first layer counts as one.
        decoder_layers=config["decoder_layers"] + 1,
        dim_feedforward=config["decoder_ffn"],
        num_attention_heads=config["heads"],
        num_queries=config["num_queries"],
        num_labels=config["num_classes"],
    )
