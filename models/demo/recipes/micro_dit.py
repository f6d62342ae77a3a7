"""Training of `micro-dit-demo`: draws one or two coloured shapes from a caption.

First the autoencoder learns pictures; then the text tower and the DiT learn, together, to denoise
its latents. As in the paper (section 3), that second part begins with three quarters of the patches
dropped behind the patch mixer and ends with all of them. The paper masks for most of the time; here,
where a picture has 16 patches only, masked steps cost two thirds of others and teach little about shapes.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from torch.nn import functional as F

from models.demo import shapes
from models.demo.recipes import Report
from models.demo.recipes.micro_dit_scores import measure
from models.diffusion.clip_text import CaptionTokenizer, TextEncoder, TowerConfig
from models.diffusion.edm import Preconditioning
from models.generation.micro_dit_network import DiT
from models.generation.micro_dit_sampling import SIGMA_DATA
from models.registry import architecture

STEPS = 6_500
BATCH = 64
MASKED_STEPS = 0.15
MASK_RATIO = 0.75
LEARNING_RATE = 2e-3
CAPTION_DROPOUT = 0.1
# Mean and deviation of ln(sigma) in training. The authors take -0.6, 1.2 at 256 pixels and 0, 0.6 at
# 512; here pictures are small, and what tells shapes apart is decided at much noise.
P_MEAN, P_STD = 0.1, 1.0
EMA_STEPS = 500

AUTOENCODER_STEPS = 3_000
AUTOENCODER_BATCH = 16
AUTOENCODER_LEARNING_RATE = 2.5e-3
KL_WEIGHT = 5e-3

PICTURES = 16_000
# A calmer world than the one that is recognised: what a prompt does not say is left to chance, and a
# network of this size has to spend most of its training on it.
VARIETY = 0.25
HELD_OUT_PROMPTS = 200
# Share of the time that each part takes, for the progress bar.
_DRAWN, _ENCODED = 0.03, 0.4

_WORDS = (
    *("[pad]", "[start]", "[end]", "[unk]", "a", "an", "the", "of", "and", "left", "right"),
    *("above", "below", ",", "picture", *shapes.COLOURS, *shapes.SHAPES),
)
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 16, 32, 48),
    "layers_per_block": 1,
    # With few channels, more groups would leave the decoder no way to pass on a picture's overall colour.
    "norm_num_groups": 1,
    "sample_size": 64,
}


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures uint8 [N, 3, 64, 64] and their scenes, one and two objects in turn."""

    pixels: Tensor
    scenes: list[shapes.Scene]


def train(
    folder: Path, device: str, seed: int, report: Report, steps: int | None = None
) -> dict[str, float]:
    """Train autoencoder, text tower and DiT; see `models.demo.recipes.Recipe`."""
    share = min(1.0, (steps or STEPS) / STEPS)
    paper = architecture("micro-dit")
    config = paper.config("demo")
    on = torch.device(device)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    drawn = draw(seed * PICTURES, max(BATCH, round(PICTURES * share)), report)

    vae = AutoencoderKL(latent_channels=config["dit"].in_channels, **_AUTOENCODER).to(on)
    fit_autoencoder(vae, drawn, max(2, round(AUTOENCODER_STEPS * share)), report)
    latents = encode(vae, drawn)
    scale = SIGMA_DATA / latents.std().item()
    vae.register_to_config(scaling_factor=scale)

    text = TextEncoder(config["text_encoder"].build(), tokenizer(config["text_encoder"])).to(on)
    network = DiT(config["dit"]).to(on)
    network.initialize()
    text, network = fit(network, text, latents * scale, drawn.scenes, steps or STEPS, rng, report)
    save(folder, vae, text, network)
    report(1.0, "measuring")
    return measure(folder, device, max(1, round(HELD_OUT_PROMPTS * share)))


def draw(first: int, count: int, report: Report) -> Pictures:
    """Draw `count` training pictures from seed `first` on."""
    pixels, scenes = np.empty((count, 64, 64, 3), np.uint8), []
    for k in range(count):
        pixels[k], scene = shapes.draw(first + k, objects=1 + k % 2, variety=VARIETY)
        scenes.append(scene)
        if k % 500 == 0:
            report(_DRAWN * k / count, "drawing pictures")
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), scenes)


def fit_autoencoder(vae: AutoencoderKL, drawn: Pictures, steps: int, report: Report) -> None:
    """Minimise absolute and squared error of reconstructions, with a light pull of the latents to N(0, 1)."""
    vae.train().to(memory_format=torch.channels_last)
    # Nearly noiseless latents at first: from unit noise, the decoder learns nothing for long.
    nn.init.constant_(vae.quant_conv.bias.data[vae.config.latent_channels :], -5.0)
    optimiser = torch.optim.AdamW(
        vae.parameters(), lr=AUTOENCODER_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4
    )
    schedule = _cosine(optimiser, steps, warm_up=50)
    for step in range(steps):
        chosen = torch.randint(len(drawn.pixels), (AUTOENCODER_BATCH,))
        picture = _unit(drawn.pixels[chosen]).to(vae.device, memory_format=torch.channels_last)
        posterior = vae.encode(picture).latent_dist
        difference = vae.decode(posterior.sample()).sample - picture
        kl = posterior.kl().sum() / picture.numel()
        loss = difference.abs().mean() + difference.square().mean() + KL_WEIGHT * kl
        _descend(optimiser, schedule, loss, vae.parameters())
        if step % 20 == 0:
            done = _DRAWN + (_ENCODED - _DRAWN) * step / steps
            report(done, f"autoencoder {step}/{steps}, loss {loss.item():.4f}")
    vae.eval()


@torch.inference_mode()
def encode(vae: AutoencoderKL, drawn: Pictures) -> Tensor:
    """Return the unscaled latents of all pictures, float32 on the CPU."""
    parts = [
        vae.encode(_unit(part).to(vae.device)).latent_dist.mean.cpu()
        for part in drawn.pixels.split(100)
    ]
    return torch.cat(parts).contiguous()


def fit(
    network: DiT,
    text: TextEncoder,
    latents: Tensor,
    scenes: list[shapes.Scene],
    steps: int,
    rng: np.random.Generator,
    report: Report,
) -> tuple[TextEncoder, DiT]:
    """Train text tower and DiT together with the EDM loss; return their running averages."""
    both = nn.ModuleList([text, network]).train()
    average = copy.deepcopy(both).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(
        both.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01
    )
    schedule = _cosine(optimiser, steps, warm_up=100)
    device = network.pos_embed.device
    for step in range(steps):
        chosen = torch.from_numpy(rng.integers(len(scenes), size=BATCH))
        captions = [caption(scenes[i], rng) for i in chosen.tolist()]
        masked = step < MASKED_STEPS * steps
        loss = _loss(network, text, latents[chosen].to(device), captions, masked)
        _descend(optimiser, schedule, loss, both.parameters())
        _follow(average, both, 1 / min(step + 1, EMA_STEPS))
        if step % 20 == 0:
            done = _ENCODED + (1 - _ENCODED) * step / steps
            report(done, f"DiT {step}/{steps}, loss {loss.item():.4f}")
    return average[0], average[1]


def _loss(
    network: DiT, text: TextEncoder, latent: Tensor, captions: list[str], masked: bool
) -> Tensor:
    """Return the EDM loss; with `masked` over the patches that were kept."""
    count, device = len(latent), latent.device
    sigma = (torch.randn(count, device=device) * P_STD + P_MEAN).exp().view(-1, 1, 1, 1)
    scales = Preconditioning(SIGMA_DATA)
    noisy = latent + sigma * torch.randn_like(latent)
    states = text.encode(captions)
    shown = torch.rand(count, 1, 1, device=device) >= CAPTION_DROPOUT
    kept, weight = None, torch.ones((), device=device)
    if masked:
        tokens = network.side**2
        order = torch.rand(count, tokens, device=device).argsort(dim=1)
        kept = order[:, : int(tokens * (1 - MASK_RATIO))]
        seen = torch.zeros(count, tokens, device=device).scatter(1, kept, 1.0)
        weight = F.interpolate(
            seen.view(-1, 1, network.side, network.side), scale_factor=network.config.patch_size
        )
        weight = weight / weight.mean()
    output = network(
        noisy * scales.input(sigma),
        scales.noise_level(sigma).flatten(),
        network.condition(states * shown),
        kept,
    )
    denoised = scales.skip(sigma) * noisy + scales.output(sigma) * output
    return (scales.weight(sigma) * weight * (denoised - latent).square()).mean()


def caption(scene: shapes.Scene, rng: np.random.Generator) -> str:
    """Return one of the ways to say what a scene shows."""
    names = [drawn.name for drawn in scene.objects]
    words = [f"{shapes.article(name)} {name}" for name in names]
    manner = rng.uniform()
    if manner < 0.1:
        words = names
    elif manner < 0.2:
        words = [f"the {name}" for name in names]
    if len(words) == 1:
        return f"a picture of {words[0]}" if 0.2 <= manner < 0.3 else words[0]
    side = scene.relations[0].side
    order = rng.uniform()
    if order < 0.1:
        return f"{words[0]} and {words[1]}"
    if order < 0.4:
        return f"{words[1]} {_OPPOSITE[side]} {words[0]}"
    return f"{words[0]} {side} {words[1]}"


def tokenizer(config: TowerConfig) -> CaptionTokenizer:
    """Return the demo's tokenizer: one token a word, small letters."""
    words = Tokenizer(WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="[unk]"))
    words.normalizer = Lowercase()
    words.pre_tokenizer = Whitespace()
    return CaptionTokenizer(words, config)


def save(folder: Path, vae: AutoencoderKL, text: TextEncoder, network: DiT) -> None:
    """Write the parts of the served model, weights in float16."""
    for name, module in (("model", network), ("text_encoder", text.tower), ("vae", vae)):
        state = module.state_dict()
        halves = {key: value.half().cpu().contiguous() for key, value in state.items()}
        save_file(halves, folder / f"{name}.safetensors")
    settings = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    (folder / "vae.json").write_text(json.dumps(settings, indent=2) + "\n")
    text.tokenizer.tokenizer.save(str(folder / "tokenizer.json"))


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def _cosine(
    optimiser: torch.optim.Optimizer, steps: int, warm_up: int
) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _descend(
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loss: Tensor,
    parameters: Iterable[nn.Parameter],
) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    schedule.step()


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, share: float) -> None:
    """Move the running average towards the module by `share` of the way."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), share)
