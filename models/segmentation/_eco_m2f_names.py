"""The names of detectron2's Mask2Former with Swin, and what transformers calls the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from models.architecture import StateDict

_BACKBONE = "pixel_level_module.encoder"
_PIXELS = "pixel_level_module.decoder"
_QUERIES = "transformer_module"
# Patterns of official names, tried in this order, and what becomes of them.
_NAMES = (
    (
        r"backbone\.patch_embed\.proj\.",
        rf"{_BACKBONE}.swin.embeddings.patch_embeddings.projection.",
    ),
    (r"backbone\.patch_embed\.norm\.", rf"{_BACKBONE}.swin.embeddings.norm."),
    (r"backbone\.norm0\.", rf"{_BACKBONE}.hidden_states_norms.stage1."),
    (r"backbone\.norm1\.", rf"{_BACKBONE}.hidden_states_norms.stage2."),
    (r"backbone\.norm2\.", rf"{_BACKBONE}.hidden_states_norms.stage3."),
    (r"backbone\.norm3\.", rf"{_BACKBONE}.hidden_states_norms.stage4."),
    (r"backbone\.layers\.", rf"{_BACKBONE}.swin.encoder.layers."),
    (r"sem_seg_head\.pixel_decoder\.input_proj\.", rf"{_PIXELS}.input_projections."),
    (r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.gt\.head\.", rf"{_PIXELS}.encoder.gate."),
    (r"sem_seg_head\.pixel_decoder\.transformer\.", rf"{_PIXELS}."),
    (r"sem_seg_head\.pixel_decoder\.mask_features\.", rf"{_PIXELS}.mask_projection."),
    (r"sem_seg_head\.pixel_decoder\.(adapter|layer)_1\.norm\.", rf"{_PIXELS}.\1_1.1."),
    (r"sem_seg_head\.pixel_decoder\.(adapter|layer)_1\.", rf"{_PIXELS}.\1_1.0."),
    (
        r"sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.norm\.",
        rf"{_QUERIES}.decoder.layers.\1.self_attn_layer_norm.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.",
        rf"{_QUERIES}.decoder.layers.\1.cross_attn_layer_norm.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.norm\.",
        rf"{_QUERIES}.decoder.layers.\1.final_layer_norm.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_self_attention_layers\.",
        rf"{_QUERIES}.decoder.layers.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.",
        rf"{_QUERIES}.decoder.layers.\1.cross_attn.",
    ),
    (r"sem_seg_head\.predictor\.transformer_ffn_layers\.", rf"{_QUERIES}.decoder.layers."),
    (r"sem_seg_head\.predictor\.decoder_norm\.", rf"{_QUERIES}.decoder.layernorm."),
    (r"sem_seg_head\.predictor\.query_feat\.", rf"{_QUERIES}.queries_features."),
    (r"sem_seg_head\.predictor\.query_embed\.", rf"{_QUERIES}.queries_embedder."),
    (r"sem_seg_head\.predictor\.level_embed\.", rf"{_QUERIES}.level_embed."),
    (r"sem_seg_head\.predictor\.class_embed\.", "class_predictor."),
    (
        r"sem_seg_head\.predictor\.mask_embed\.layers\.(\d+)\.",
        rf"{_QUERIES}.decoder.mask_predictor.mask_embedder.\1.0.",
    ),
)
# Within what the patterns above have placed.
_PARTS = (
    (rf"({_PIXELS}\.encoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (rf"({_PIXELS}\.encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"(\.layers\.\d+)\.linear([12])\.", r"\1.fc\2."),
    (r"\.blocks\.(\d+)\.norm1\.", r".blocks.\1.layernorm_before."),
    (r"\.blocks\.(\d+)\.norm2\.", r".blocks.\1.layernorm_after."),
    (
        r"\.attn\.relative_position_bias_table",
        ".attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)
# Of checkpoints: weights of the loss, and what the sizes of the network determine.
_UNUSED = re.compile(r"criterion\.|.*\.(relative_position_index|attn_mask)$")
# Queries, keys and values in one tensor, where transformers has three.
_PACKED = re.compile(r"(.*\.)(attn\.qkv\.|self_attn\.in_proj_)(weight|bias)$")


def official_to_own(state: Mapping[str, Tensor]) -> StateDict:
    """Return a state dict of detectron2's Mask2Former with Swin by our names; names of our own stay as they are."""
    return {
        name: part
        for official, value in state.items()
        if not _UNUSED.match(official)
        for name, part in _parts(_placed(official), value)
    }


def _placed(name: str) -> str:
    for pattern, place in _NAMES:
        name, found = re.subn(rf"^{pattern}", place, name)
        if found:
            break
    else:
        return name
    for pattern, place in _PARTS:
        name = re.sub(pattern, place, name)
    return name


def _parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    packed = _PACKED.match(name)
    if not packed:
        yield name, value
        return
    prefix, kind, leaf = packed.groups()
    module = "attention" if kind.startswith("attn.") else "self_attn"
    for letter, part in zip("qkv", value.chunk(3), strict=True):
        yield f"{prefix}{module}.{letter}_proj.{leaf}", part.clone()
