"""From a scene graph to the codes of a picture: the graph's tensors, its layout as tokens, and the sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.generation.trf_sg2im_network import GPT, Layout, TrfSg2Im

# Objects in the longest layout; each is a class and two corners.
MOST_OBJECTS = 30
_WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Graph:
    """Classes of nodes [M] and edges [E], and the edges' source and target nodes [2, E]."""

    objects: Tensor
    relations: Tensor
    ends: Tensor

    @classmethod
    def of(
        cls,
        objects: Sequence[int],
        triples: Sequence[tuple[int, int, int]],
        image: int,
        in_image: int,
    ) -> Graph:
        """Build the graph of objects and (subject, relation, object) triples, as the networks were trained.

        A node of class `image` for the whole picture is appended, into which each object has an edge
        of class `in_image`. Raises ValueError for too many objects, a triple from an object to
        itself, or to one that there is not.
        """
        count = len(objects)
        if not 0 < count < MOST_OBJECTS:
            raise ValueError(f"{count} objects; there must be 1 to {MOST_OBJECTS - 1}")
        for subject, _, other in triples:
            if not (0 <= subject < count and 0 <= other < count) or subject == other:
                raise ValueError(
                    f"no relation can lead from object {subject} to {other} of {count}"
                )
        edges = [*triples, *((i, in_image, count) for i in range(count))]
        sources, relations, targets = zip(*edges, strict=True)
        return cls(
            torch.tensor([*objects, image]),
            torch.tensor(relations),
            torch.tensor([sources, targets]),
        )

    def repeated(self, copies: int) -> Graph:
        """Return copies of the graph as one, with no edges between them."""
        shifts = torch.arange(copies).repeat_interleave(len(self.relations)) * len(self.objects)
        return Graph(
            self.objects.repeat(copies),
            self.relations.repeat(copies),
            self.ends.repeat(1, copies) + shifts,
        )

    def positions(self, dim: int) -> Tensor:
        """Return each node's place in the graph [M, dim]: eigenvectors of its Laplacian, without the first.

        The matrix holds edges from rows to columns and counts those that come in, so that it is not symmetric;
        real parts are taken. Columns that the graph is too small for are zero.
        """
        count = len(self.objects)
        adjacency = np.zeros((count, count))
        np.add.at(adjacency, tuple(self.ends.numpy()), 1.0)
        scale = 1 / np.sqrt(adjacency.sum(0).clip(min=1))
        values, vectors = np.linalg.eig(np.eye(count) - scale[:, None] * adjacency * scale)
        chosen = np.real(vectors[:, values.argsort()])[:, 1 : dim + 1]
        padded = np.zeros((count, dim), dtype=np.float32)
        padded[:, : chosen.shape[1]] = chosen
        return torch.from_numpy(padded)


@dataclass(frozen=True)
class Chance:
    """What is random before the sampling: signs of the positions' columns [dim], and the order of the objects [M]."""

    signs: Tensor
    order: Tensor

    @classmethod
    def drawn(cls, generator: torch.Generator, dim: int, objects: int) -> Chance:
        signs = 2 * torch.randint(2, (dim,), generator=generator) - 1
        return cls(signs.float(), torch.randperm(objects, generator=generator))


def corner_tokens(corners: Tensor, vocabulary: int) -> Tensor:
    """Return the token of each corner (x, y) in 0 to 1, [..., 2] to [...]: its cell in the largest square grid."""
    side = math.isqrt(vocabulary)
    x, y = (corners.clamp(0, 1) * (side - 1)).round().long().unbind(-1)
    return y * side + x


def layout_tokens(classes: Tensor, boxes: Tensor, order: Tensor, vocabulary: int) -> Tensor:
    """Return a layout [B, 92] of classes [B, M] and boxes [B, M, 4], objects in the given order [B, M].

    Each object is its class, its upper left and its lower right corner; then comes padding, and the box of the
    whole picture.
    """
    corners = corner_tokens(boxes.unflatten(-1, (2, 2)), vocabulary)
    objects = torch.cat([classes.unsqueeze(-1), corners], dim=-1)
    objects = objects.gather(1, order.unsqueeze(-1).expand(-1, -1, 3)).flatten(1)
    tokens = objects.new_full((len(objects), 3 * MOST_OBJECTS), vocabulary - 1)
    tokens[:, : objects.shape[1]] = objects
    whole = corner_tokens(boxes.new_tensor(_WHOLE).view(2, 2), vocabulary)
    return torch.cat([tokens, whole.expand(len(tokens), -1)], dim=1)


def sample_codes(
    network: GPT,
    layout: Tensor,
    count: int,
    generators: Sequence[torch.Generator],
    *,
    top_k: int = 100,
    temperature: float = 1.0,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Return `count` codes [B, count] that follow the layout [B, T], each drawn from the `top_k` likeliest.

    Each sample draws from its own generator, on the CPU. `on_step` is told each step; what it raises ends
    the sampling.
    """
    tokens, cache, codes = layout, None, []
    for step in range(count):
        logits, cache = network(tokens, cache)
        likeliest = (logits[:, -1].float().cpu() / temperature).topk(min(top_k, logits.shape[-1]))
        drawn = [
            candidates[torch.multinomial(values.softmax(-1), 1, generator=generator)]
            for values, candidates, generator in zip(*likeliest, generators, strict=True)
        ]
        tokens = torch.stack(drawn).to(layout.device)
        codes.append(tokens)
        if on_step is not None:
            on_step(step)
    return torch.cat(codes, dim=1)


@dataclass(frozen=True)
class Drawn:
    """Codes [B, h, w] of a graph's pictures, and the layout of each: boxes [B, M, 4], logits [B, M, n_objs].

    The last node is the whole picture.
    """

    codes: Tensor
    layout: Layout


def draw(
    network: TrfSg2Im,
    graph: Graph,
    seeds: Sequence[int],
    *,
    top_k: int = 100,
    temperature: float = 1.0,
    on_step: Callable[[int], None] | None = None,
) -> Drawn:
    """Lay out and draw the graph once for each seed, on which alone its sample depends."""
    device = network.img_trf.pos_emb.device
    count, dim = len(graph.objects), network.sgtrf.embedding_lap_pos_enc.in_features
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    chances = [Chance.drawn(generator, dim, count) for generator in generators]
    signs = torch.stack([chance.signs for chance in chances])
    positions = (graph.positions(dim) * signs.unsqueeze(1)).flatten(0, 1)
    copies = graph.repeated(len(seeds))
    found = network.sgtrf(
        *(t.to(device) for t in (copies.objects, copies.relations, copies.ends, positions))
    )
    layout = Layout(*(t.unflatten(0, (len(seeds), count)) for t in (found.boxes, found.logits)))
    tokens = layout_tokens(
        layout.logits.argmax(-1),
        layout.boxes,
        torch.stack([chance.order for chance in chances]).to(device),
        network.img_trf.config.vocab_size,
    )
    side = network.vq.code_grid
    codes = sample_codes(
        network.img_trf,
        tokens,
        side**2,
        generators,
        top_k=top_k,
        temperature=temperature,
        on_step=on_step,
    )
    return Drawn(codes.view(-1, side, side), layout)
