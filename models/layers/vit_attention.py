"""The self-attention of timm's vision transformers in two steps, for what needs the map itself.

timm's module computes the same, but fused, so that no map can be read or changed.
"""

from __future__ import annotations

import torch
from timm.layers import Attention
from torch import Tensor


def attention_map(
    attention: Attention, x: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weights [B, heads, N, N], whose rows sum to 1, and the values [B, heads, N, d].

    `x`: normalised tokens [B, N, C]. `bias` is added to the scores and broadcasts to their shape.
    """
    batch, tokens, _ = x.shape
    qkv = attention.qkv(x).view(batch, tokens, 3, attention.num_heads, attention.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    scores = (q * attention.scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return attention.attn_drop(scores.softmax(-1)), v


def attended(attention: Attention, weights: Tensor, values: Tensor) -> Tensor:
    """Return tokens [B, N, C]: the values mixed by the weights of `attention_map`, and projected."""
    mixed = (weights @ values).transpose(1, 2).flatten(2)  # B, N, heads * d
    return attention.proj_drop(attention.proj(attention.norm(mixed)))


@torch.no_grad()
def attention_maps(network: torch.nn.Module, image: Tensor) -> list[Tensor]:
    """Return the maps [B, heads, N, N] of all attention modules of a network for `image`, in their order.

    The network itself runs unchanged; each map is computed once more from what its module is given.
    """
    maps: list[Tensor] = []

    def keep(module: Attention, inputs: tuple[Tensor, ...]) -> None:
        maps.append(attention_map(module, inputs[0])[0])

    hooks = [
        module.register_forward_pre_hook(keep)
        for module in network.modules()
        if isinstance(module, Attention)
    ]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return maps
