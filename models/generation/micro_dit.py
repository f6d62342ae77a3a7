"""MicroDiT's variants: what the authors published, and the small one that ships."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.architecture import Architecture, Source, Variant
from models.diffusion.autoencoder import Autoencoder
from models.diffusion.clip_text import TextEncoder, TowerConfig
from models.generation.micro_dit_generator import MicroDiT
from models.generation.micro_dit_network import DiT, DiTConfig, linspace, published
from models.registry import register
from models.serving import Device
from service.triton.cards import Card, Licence, Metric, Paper, Parameter, Task

# The vocabulary of the demo's captions is smaller than this; the rest of the places stay unused.
DEMO_TOWER = TowerConfig(
    width=64, layers=2, heads=4, vocabulary=48, tokens=16, start=1, end=2, padding=0
)
DEMO_SIZE = 64
_DEMO_DEPTH = 4
DEMO = DiTConfig(
    input_size=8,
    in_channels=8,
    dim=96,
    depth=_DEMO_DEPTH,
    head_dim=24,
    multiple_of=32,
    caption_channels=DEMO_TOWER.width,
    qkv_multipliers=linspace(0.5, 1.0, _DEMO_DEPTH),
    ffn_multipliers=linspace(0.5, 4.0, _DEMO_DEPTH),
    patch_mixer_depth=2,
    patch_mixer_dim=72,
    patch_mixer_mlp_ratio=2.0,
    use_bias=False,
    num_experts=4,
    expert_capacity=2.0,
)


def _parameters(size: int, steps: int, longest: int, guidance: float = 5.0) -> dict[str, Parameter]:
    sides = {
        "type": "integer",
        "default": size,
        "choices": (size,),
        "description": "Pixels; the network makes one size.",
    }
    return {
        "prompt": Parameter(type="string", max_length=longest, description="What to show."),
        "steps": Parameter(
            type="integer",
            default=steps,
            minimum=1,
            maximum=100,
            description="Denoising steps of Heun's method; the network runs twice in each but the last.",
        ),
        "guidance": Parameter(
            type="number",
            default=guidance,
            minimum=0.0,
            maximum=20.0,
            description="Strength of classifier-free guidance; 1 and less turn it off and cost half.",
        ),
        "seed": Parameter(
            type="integer",
            minimum=0,
            maximum=2**63 - 1,
            description="The same prompt, seed and settings give the same picture; 0 is a seed too.",
        ),
        "width": Parameter(**sides),
        "height": Parameter(**sides),
        "n": Parameter(
            type="integer", default=1, minimum=1, maximum=8, description="Number of pictures."
        ),
    }


_HUB = "hf://VSehwag24/MicroDiT/ckpts"
_TEXT = (
    Source("hf://apple/DFN5B-CLIP-ViT-H-14-378/open_clip_pytorch_model.bin", part="text_encoder"),
    Source("hf://openai/clip-vit-large-patch14/tokenizer.json", part="tokenizer", format="raw"),
)
_SDXL = "hf://stabilityai/stable-diffusion-xl-base-1.0/vae"
_F8D16 = "hf://ostris/vae-kl-f8-d16"
_TEXT_NOTE = (
    "The text tower is apple/DFN5B-CLIP-ViT-H-14-378, under Apple's sample code licence "
    "(apple-sample-code-license), which is not a standard open-source licence: read it before you "
    "ship this."
)
_GUIDANCE_NOTE = (
    "Guidance is against an all-zero caption, as in the authors' code; there is no negative prompt."
)
_BF16_NOTE = (
    "Experts choose tokens by top-k: in bfloat16 a near tie may fall otherwise in another batch, so "
    "the same seed then gives a slightly different picture."
)


def _vae(folder: str) -> tuple[Source, ...]:
    return (
        Source(f"{folder}/diffusion_pytorch_model.safetensors", part="vae"),
        Source(f"{folder}/config.json", part="vae", format="raw"),
    )


def _xl(name: str, file: str, images: str, fid: float, geneval: float, channels: int) -> Variant:
    autoencoder, licence = (
        (_SDXL, "SDXL's, under OpenRAIL++-M") if channels == 4 else (_F8D16, "ostris's, under MIT")
    )
    return Variant(
        name=name,
        config={
            "dit": published(
                "MicroDiT_XL_2", input_size=64, in_channels=channels, pos_interp_scale=2.0
            ),
            "text_encoder": TowerConfig(),
        },
        sources=(Source(f"{_HUB}/{file}"), *_TEXT, *_vae(autoencoder)),
        metrics=(
            Metric(
                name="FID",
                value=fid,
                dataset="COCO, zero-shot",
                origin="published",
                note=f"trained on {images}",
            ),
            Metric(name="GenEval", value=geneval, dataset="GenEval", origin="published"),
        ),
        parameters=_parameters(512, 30, 1000),
        notes=(
            _TEXT_NOTE,
            f"The autoencoder is {licence}.",
            _GUIDANCE_NOTE,
            _BF16_NOTE,
        ),
    )


_VARIANTS = (
    _xl(
        "xl-2",
        "dit_4_channel_37M_real_and_synthetic_data.pt",
        "37 million real and synthetic pictures",
        12.66,
        0.46,
        channels=4,
    ),
    _xl(
        "xl-2-22m-real",
        "dit_4_channel_22M_real_only_data.pt",
        "22 million real pictures",
        12.72,
        0.46,
        channels=4,
    ),
    _xl(
        "xl-2-0.5b-synthetic",
        "dit_4_channel_0.5B_synthetic_data.pt",
        "0.5 billion synthetic pictures",
        13.26,
        0.52,
        channels=4,
    ),
    _xl(
        "xl-2-16ch",
        "dit_16_channel_37M_real_and_synthetic_data.pt",
        "37 million real and synthetic pictures",
        13.04,
        0.40,
        channels=16,
    ),
    Variant(
        name="tiny-2",
        config={"dit": published("MicroDiT_Tiny_2", input_size=32), "text_encoder": TowerConfig()},
        parameters=_parameters(256, 30, 1000),
        notes=("The authors released no weights of this size.", _GUIDANCE_NOTE, _BF16_NOTE),
    ),
    Variant(
        name="demo",
        config={"dit": DEMO, "text_encoder": DEMO_TOWER},
        parameters=_parameters(DEMO_SIZE, 12, 200, guidance=3.0),
        notes=(
            "Draws one or two coloured shapes: red, green, blue, yellow, purple or orange; circle, "
            "square, triangle, star, pentagon or cross; left of, right of, above or below.",
            _GUIDANCE_NOTE,
        ),
        demo=True,
        default=True,
    ),
)


@register
class MicroDiTArchitecture(Architecture):
    """MicroDiT with its text tower and autoencoder."""

    slug = "micro-dit"
    title = "MicroDiT"
    task = Task.TEXT_TO_IMAGE
    paper = Paper(
        slug="micro-dit",
        title="Stretching Each Dollar: Diffusion Training from Scratch on a Micro-Budget",
        year=2024,
        arxiv="2407.15811",
    )
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    variants: Mapping[str, Variant] = {variant.name: variant for variant in _VARIANTS}
    cost = "batch"
    max_batch = 8
    preferred_batches = (2, 4, 8)

    def network(self, config: Mapping[str, Any]) -> DiT:
        return DiT(config["dit"])

    def serve(self, network: Any, card: Card, device: Device, folder: Path) -> MicroDiT:
        text_encoder = TextEncoder.load(folder, self.config(card.variant)["text_encoder"])
        return MicroDiT(
            network,
            text_encoder.to(device.torch),
            Autoencoder.load(folder, device),
            card,
            device,
        )
