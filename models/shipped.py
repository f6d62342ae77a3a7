"""The weights that ship with the project: `models/demo/weights/<id>.safetensors`, or a folder of parts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

WEIGHTS = Path(__file__).parent / "demo" / "weights"

# Id -> (architecture:variant, what kind of weights they are).
SHIPPED: dict[str, tuple[str, Literal["demo", "official"]]] = {
    "ci2p-vit-demo": ("ci2p-vit:demo", "demo"),
    "convnext-demo": ("convnext:demo", "demo"),
    "convnext-detection-demo": ("convnext-detection:demo", "demo"),
    "drct-demo": ("drct:demo", "demo"),
    "duoformer-demo": ("duoformer:demo", "demo"),
    "eco-m2f-demo": ("eco-m2f:demo", "demo"),
    "fmvit-demo": ("fmvit:demo", "demo"),
    "genconvit-demo": ("genconvit:demo", "demo"),
    "gms-demo": ("gms:demo", "demo"),
    "hornet-demo": ("hornet:demo", "demo"),
    "kmax-deeplab-demo": ("kmax-deeplab:demo", "demo"),
    "mae-thorax-demo": ("mae-thorax:demo", "demo"),
    "mae-thorax-reconstruction-demo": ("mae-thorax-reconstruction:demo", "demo"),
    "mask2former-demo": ("mask2former:demo", "demo"),
    "micro-dit-demo": ("micro-dit:demo", "demo"),
    "mtcnn": ("mtcnn:default", "official"),
    "next-vit-demo": ("next-vit:demo", "demo"),
    "s2aformer-demo": ("s2aformer:demo", "demo"),
    "svt-demo": ("svt:demo", "demo"),
    "tinyvit-demo": ("tinyvit:demo", "demo"),
    "turbovit-demo": ("turbovit:demo", "demo"),
    "uniformer-demo": ("uniformer:demo", "demo"),
    "vit-resnas-demo": ("vit-resnas:demo", "demo"),
}


def shipped_parts(id: str) -> tuple[dict[str, Path], str]:
    """Return the parts of a shipped model by file name, and the SHA-256 over them all.

    Raises FileNotFoundError when the weights of `id` are not there (not trained yet).
    """
    folder = WEIGHTS / id
    if folder.is_dir():
        parts = {f.name: f for f in sorted(folder.iterdir()) if f.name != "training.json"}
    else:
        parts = {"model.safetensors": WEIGHTS / f"{id}.safetensors"}
    digest = hashlib.sha256()
    for path in parts.values():
        digest.update(path.read_bytes())
    return parts, digest.hexdigest()
