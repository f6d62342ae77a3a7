"""Maps of a class's evidence for any classifier: HiResCAM (https://arxiv.org/abs/2011.08891), by captum.

A member of the Grad-CAM family. At a layer whose output is still a picture of features, each position's
evidence for a class is the sum over channels of activation times gradient of the class's logit. Where
only averaging and one linear layer follow, these are Grad-CAM's maps and sum to the logit but for its
bias; unlike Grad-CAM it stays true where positions count differently, as tokens do in attention.

The layer is found by trying: of all blocks and norms whose output has the form of the picture, and is
not much coarser than others are, the last one that has evidence and that nothing but a class token
bypasses. Layers whose scale does not count, because only a norm follows, have none: there the gradient
is at right angles to the activation. In a network that reads its answer from a class token it is the
norm before the last attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isqrt

import torch
from torch import nn

from models.serving import InvalidInput

METHOD = "hires-cam"

# Maps of fewer positions say nothing; nearly as many as pixels are no features yet.
_LEAST_SIDE, _LEAST_STRIDE = 4, 2
# Layers with as many positions as a plain ViT's at 224 pixels are preferred to coarser ones. Of the demo
# ConvNeXt, whose layers have 16, 8 and 4 a side, those with 16 have the lowest Average Drop once the map
# is cut to its strongest half, and the only maps that lie on the shape.
_FINE_SIDE = 14
# How many pictures go through the network at a time: the backward pass keeps all its activations.
_AT_ONCE = 4
# How many layers to try, from the last one on, when one is looked for that nothing bypasses.
_TRIALS = 8
# What is left of terms that cancel each other is evidence from this share of them on.
_LEAST_SHARE = 3e-3

Network = Callable[[torch.Tensor], torch.Tensor]


class HiResCam:
    """Evidence maps of `network`, a classifier whose `logits` are differentiable in its pictures."""

    def __init__(self, network: nn.Module, logits: Network) -> None:
        self._network = network
        self._logits = logits
        self._layers: dict[torch.Size, nn.Module] = {}

    def __call__(self, image: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return float32 maps [B, h, w] in 0..1 of `classes` [B] for pictures [B, 3, H, W].

        Positions that speak against the class are 0, the strongest one for it is 1. Raises
        InvalidInput if the network has no layer whose output has the form of the picture.
        """
        # Tensors made in inference mode, in which the backend runs, can have no gradient.
        with torch.inference_mode(False), torch.enable_grad():
            image = image.clone()
            parts = zip(image.split(_AT_ONCE), classes.clone().split(_AT_ONCE), strict=True)
            maps = torch.cat([self._evidence(*part) for part in parts])
        maps = maps.relu()
        return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-10)

    def _evidence(self, image: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        # captum imports matplotlib: only who asks for explanations waits for that.
        from captum.attr import LayerGradientXActivation

        size = image.shape[2:]
        if size not in self._layers:
            self._layers[size] = explained_layer(self._network, self._logits, image[:1])
        method = LayerGradientXActivation(self._logits, self._layers[size])
        with _plain_gradients(self._network):
            products = method.attribute(image.requires_grad_(), target=classes)
        return _view(products.detach(), size).float().sum(1)


def explained_layer(network: nn.Module, logits: Network, image: torch.Tensor) -> nn.Module:
    """Return the layer whose output the maps are made of, found with one picture [1, 3, H, W].

    Where the last layers are all bypassed, it is the last one that has evidence.
    Raises InvalidInput if there is none.
    """
    size = image.shape[2:]
    # Twice the picture, so that windows and groups cut from one are told from pictures.
    pair = image.repeat(2, 1, 1, 1).requires_grad_()
    with _kept_outputs(network) as kept:
        best = logits(pair).amax(1).sum()
    seen = [module for module, _ in kept]
    found = [
        (module, output)
        for module, output in kept
        if len(output) == 2 and seen.count(module) == 1 and as_map(output, size) is not None
    ]
    if not found:
        raise InvalidInput("this network has no layer of the form of its pictures")
    gradients = torch.autograd.grad(best, [output for _, output in found], allow_unused=True)
    counting = [
        (module, output)
        for (module, output), gradient in zip(found, gradients, strict=True)
        if gradient is not None and _has_evidence(_view(output * gradient, size))
    ]
    if not counting:
        raise InvalidInput("this network's answer depends on no layer of the form of its pictures")
    sides = [min(_view(output, size).shape[2:]) for _, output in counting]
    enough = min(_FINE_SIDE, max(sides))
    fine = [one for one, side in zip(counting, sides, strict=True) if side >= enough]
    last = fine[: -_TRIALS - 1 : -1]
    for module, output in last:
        # A class token always passes by what its patch tokens go through.
        has_class_token = _view(output, size).numel() < output.numel()
        if has_class_token or _takes_all(module, logits, pair):
            return module
    return last[0][0]


def _has_evidence(products: torch.Tensor) -> bool:
    """Tell whether the sums over channels are more than what rounding leaves of them."""
    return bool(products.sum(1).abs().sum() > _LEAST_SHARE * products.abs().sum())


def _takes_all(layer: nn.Module, logits: Network, image: torch.Tensor) -> bool:
    """Tell whether the logits depend on the picture through the layer alone."""
    hook = layer.register_forward_hook(lambda _module, _inputs, output: output.detach())
    try:
        total = logits(image).sum()
    finally:
        hook.remove()
    if not total.requires_grad:
        return True
    (gradient,) = torch.autograd.grad(total, image, allow_unused=True)
    return gradient is None


def as_map(output: torch.Tensor, size: torch.Size) -> torch.Tensor | None:
    """Return a layer's output as [B, C, h, w], or None if it has not the form of pictures of `size`.

    Takes maps with the channels first or last, and sequences of tokens in rows, with or without a class
    token before them.
    """
    if output.dim() == 4:
        if _fits(output.shape[2:], size):
            return output
        return output.movedim(3, 1) if _fits(output.shape[1:3], size) else None
    if output.dim() != 3:
        return None
    for tokens in (output, output.mT):  # B, N, C
        for more in (0, 1):
            count = tokens.shape[1] - more
            height = max(1, isqrt(count * size[0] // size[1]))
            grid = torch.Size((height, count // height))
            if grid.numel() == count and _fits(grid, size):
                return tokens[:, more:].mT.unflatten(2, grid)
    return None


def _view(output: torch.Tensor, size: torch.Size) -> torch.Tensor:
    view = as_map(output, size)
    assert view is not None
    return view


def _fits(grid: torch.Size, size: torch.Size) -> bool:
    """Tell whether a grid can be that of a picture's features: of its form, coarser, and not too coarse."""
    if min(grid) < _LEAST_SIDE:
        return False
    strides = [whole // side for side, whole in zip(grid, size, strict=True)]
    return strides[0] == strides[1] >= _LEAST_STRIDE and all(
        side * strides[0] == whole for side, whole in zip(grid, size, strict=True)
    )


@contextmanager
def _kept_outputs(network: nn.Module) -> Iterator[list[tuple[nn.Module, torch.Tensor]]]:
    """Collect the outputs of blocks and norms, in the order in which they end."""
    kept: list[tuple[nn.Module, torch.Tensor]] = []

    def keep(module: nn.Module, _inputs: object, output: object) -> object:
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return None
        kept.append((module, output))
        # What follows may change its input in place, and must not change what is kept.
        return output.clone()

    hooks = [
        module.register_forward_hook(keep)
        for module in network.modules()
        if module is not network and (_is_block(module) or "Norm" in type(module).__name__)
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _plain_gradients(network: nn.Module) -> Iterator[None]:
    """Hand gradients to batch norms in the plain layout.

    Of a batch of one whose gradient lies channels-last, with another stride over the batch than usual,
    PyTorch 2.15 computes them wrongly on CPUs.
    """

    def keep_plain(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(torch.Tensor.contiguous)

    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    hooks = [norm.register_forward_hook(keep_plain) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_block(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
