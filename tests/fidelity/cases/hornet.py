"""HorNet: built from the shapes in the file, loaded by the official names."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

from models.classification.hornet import GlobalLocalFilter
from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    hornet = architecture("hornet")
    config = _config(golden)
    network = load(hornet.network(config), hornet.translate({"model": golden.weights()}, config))
    found: dict[str, torch.Tensor] = {}
    for name, module in _taps(network).items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    (image,) = golden.inputs
    found["logits"] = network(golden.input(image))
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, object]:
    names = {name for name, _ in golden.state}
    stages = range(golden.count(r"stages\.(\d+)\."))
    spectra = [f"stages.{i}.0.gnconv.dwconv.complex_weight" for i in stages]
    return {
        "base_dim": golden.shape("downsample_layers.0.0.weight")[0],
        "depths": [golden.count(rf"stages\.{i}\.(\d+)\.") for i in stages],
        "orders": [1 + golden.count(rf"stages\.{i}\.0\.gnconv\.pws\.(\d+)\.") for i in stages],
        "spectra": [golden.shape(name)[1:3] if name in names else None for name in spectra],
        "scale": float(Fraction(str(golden.config.get("scale", "1/3")))),
        "num_classes": golden.shape("head.weight")[0],
    }


def _taps(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose outputs are recorded, by the names of the record."""
    taps: dict[str, nn.Module] = {"stem": network.downsample_layers[0], "features": network.norm}
    for number, stage in enumerate(network.stages, start=1):
        taps[f"stage{number}"] = stage
        taps[f"gnconv_first_stage{number}"] = stage[0].gnconv
    filters = [m for m in network.modules() if isinstance(m, GlobalLocalFilter)]
    if filters:
        taps["gf_first"] = filters[0]
    return taps
