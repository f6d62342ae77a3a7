"""A network built without initial values is, once loaded, the network built with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.registry import architectures
from models.uninitialised import Uninitialised

# Of every paper its demo, which has all of its kinds of layers; the first variant where there is none.
VARIANTS = [
    (slug, next((n for n, v in made.variants.items() if v.demo), next(iter(made.variants))))
    for slug, made in architectures().items()
]


@pytest.mark.parametrize(("slug", "name"), VARIANTS, ids=[":".join(v) for v in VARIANTS])
def test_a_loaded_network_is_the_same(slug: str, name: str) -> None:
    paper = architectures()[slug]
    config = paper.config(name)
    expected = paper.network(config)
    with Uninitialised():
        network = paper.network(config)
    network.load_state_dict(expected.state_dict())
    for kind in ("named_parameters", "named_buffers"):
        one, other = (dict(getattr(n, kind)()) for n in (expected, network))
        assert one.keys() == other.keys()
        different = [name for name in one if not torch.equal(one[name], other[name])]
        assert not different, different


def test_parameters_keep_their_memory_and_buffers_are_computed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((1000,), 7.0))
            nn.init.trunc_normal_(self.weight)
            nn.init.zeros_(self.weight)
            self.register_buffer("steps", torch.empty(3).fill_(2.0), persistent=False)

    with Uninitialised():
        network = Scaled()
    assert (network.weight == 7).all()
    assert network.steps.tolist() == [2.0, 2.0, 2.0]
    assert (Scaled().weight == 0).all()
