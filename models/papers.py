"""The 52 papers, and how far each of them is: the table in the README is generated from this list and the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.architecture import Architecture
from models.registry import architectures
from models.shipped import SHIPPED, shipped_parts

BEGIN, END = "<!-- papers -->", "<!-- /papers -->"


@dataclass(frozen=True)
class Row:
    """One of the 52 papers. `task` is what it is served as, or shall be."""

    slug: str
    title: str
    task: str


PAPERS: tuple[Row, ...] = (
    Row("genconvit", "GenConViT: deepfake video detection", "deepfake detection"),
    Row("gms", "Generative Medical Segmentation", "medical segmentation"),
    Row("cvt", "CvT: Convolutions to Vision Transformers", "classification"),
    Row("t-tame", "T-TAME: trainable attention explanations", "explanation"),
    Row("next-vit", "Next-ViT", "classification"),
    Row(
        "ganformer2",
        "Compositional Transformers for Scene Generation",
        "unconditional and layout-to-image generation",
    ),
    Row("vitok", "Scaling Visual Tokenizers (ViTok)", "reconstruction"),
    Row("vit-resnas", "Efficient Multi-Stage ViTs by NAS", "classification"),
    Row("nvist", "NViST: novel views from one image", "view synthesis"),
    Row("svt", "Scattering Vision Transformer", "classification"),
    Row("turbovit", "TurboViT", "classification"),
    Row("crossvit", "CrossViT", "classification"),
    Row("styleswin", "StyleSwin", "unconditional generation"),
    Row(
        "gmm-vit",
        "RetNet viewed through convolution (Gaussian mixture mask)",
        "classification of small images",
    ),
    Row("vir", "ViR: Vision Retention Networks", "classification, three modes"),
    Row(
        "transformer-inference-survey", "Survey of optimising transformer inference", "acceleration"
    ),
    Row("s2aformer", "S2AFormer: strip self-attention", "classification"),
    Row("eco-m2f", "Efficient encoders for Mask2Former (early exit)", "segmentation"),
    Row("t2t-vit", "Tokens-to-Token ViT", "classification"),
    Row("enat", "ENAT: token-based image synthesis", "class-to-image"),
    Row("tinyvit", "TinyViT", "classification"),
    Row("hyena-nd", "Multi-dimensional Hyena", "classification"),
    Row("ed-vit", "ED-ViT: splitting ViT for distributed inference", "distributed classification"),
    Row("sparse-vit", "Sparse then Prune", "acceleration (pruning)"),
    Row("fmvit", "FMViT: multiple-frequency mixing", "classification"),
    Row("micro-dit", "Stretching Each Dollar (MicroDiT)", "text-to-image"),
    Row(
        "magvit",
        "Multi-task multi-modal models, a video generative perspective (MAGVIT, MAGVIT-v2)",
        "class-to-video, reconstruction",
    ),
    Row("t2v-survey", "Bridging text and video generation: a survey", "text-to-video"),
    Row("uniformer", "UniFormer", "classification of images and of videos"),
    Row("trf-sg2im", "Image generation from scene graphs", "scene-graph-to-image"),
    Row("hornet", "HorNet: recursive gated convolutions", "classification"),
    Row("convit", "ConViT", "classification"),
    Row("drct", "DRCT super-resolution", "super-resolution"),
    Row("tov-vicreg", "Self-supervised ViT for deep RL (TOV-VICReg)", "embedding of frames"),
    Row(
        "sit",
        "SiT: self-supervised vision transformer",
        "embedding, few-shot classification, reconstruction",
    ),
    Row("uniformerv2", "UniFormerV2", "video classification"),
    Row(
        "token-transforming",
        "Token Transforming (training-free compression)",
        "acceleration (token compression)",
    ),
    Row("ci2p-vit", "Compress image to patches (CI2P-ViT)", "classification"),
    Row("lavin-dit", "LaVin-DiT: large vision diffusion transformer", "in-context vision tasks"),
    Row("tnt", "Transformer in Transformer", "classification"),
    Row("vit-comer", "ViT-CoMer", "detection, segmentation"),
    Row("duoformer", "DuoFormer", "classification of histology tiles"),
    Row("shiftaddvit", "ShiftAddViT", "classification"),
    Row("vl-gpt", "VL-GPT", "ask, text-to-image"),
    Row("kmax-deeplab", "kMaX-DeepLab", "panoptic segmentation"),
    Row("gtp-vit", "GTP-ViT: graph-based token propagation", "acceleration (token propagation)"),
    Row(
        "mae-thorax",
        "Masked autoencoders for thorax disease",
        "multi-label classification of chest X-rays",
    ),
    Row(
        "patch-robustness",
        "Are ViTs robust to patch perturbations?",
        "robustness of classification",
    ),
    Row("dvt", "Denoising Vision Transformers", "embedding"),
    Row("tic", "TiC: Vision Transformer in Convolution", "classification"),
    Row("swin", "Swin Transformer", "classification, detection, segmentation"),
    Row(
        "convnext", "A ConvNet for the 2020s (ConvNeXt)", "classification, detection, segmentation"
    ),
)


def table() -> str:
    """Return the status of the 52 papers as a Markdown table.

    `served` is said of papers that are in the registry; published weights are counted by variant;
    weights that ship are counted only where their files are there.
    """
    served: dict[str, list[Architecture]] = {}
    for architecture in architectures().values():
        served.setdefault(architecture.paper.slug, []).append(architecture)
    lines = [
        f"{sum(row.slug in served for row in PAPERS)} of {len(PAPERS)} papers are served.",
        "",
        "| # | paper | slug | task | status | published weights | demo weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(PAPERS, 1):
        made = served.get(row.slug, [])
        cells = (
            str(number),
            row.title,
            f"`{row.slug}`",
            row.task,
            "served" if made else "planned",
            _published(made),
            "ship" if _ships(made) else "–",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def inserted(document: str) -> str:
    """Return `document` with the table between its two markers. Raises ValueError without them."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} … {END} in it")
    return f"{head}{BEGIN}\n\n{table()}\n{END}{tail}"


def write(path: Path) -> None:
    """Bring the table in a document up to date. Raises ValueError if it has no markers."""
    path.write_text(inserted(path.read_text(encoding="utf-8")), encoding="utf-8")


def _published(made: list[Architecture]) -> str:
    variants = [(a, v) for a in made for v in a.variants.values() if v.sources]
    if not variants:
        return "–"
    free = [a.terms(v).commercial for a, v in variants]
    terms = "" if all(free) else ", in part non-commercial" if any(free) else ", non-commercial"
    return f"{len(variants)} by `vitrine pull`{terms}"


def _ships(made: list[Architecture]) -> bool:
    slugs = {a.slug for a in made}
    for id, (spec, kind) in SHIPPED.items():
        if kind == "demo" and spec.partition(":")[0] in slugs:
            try:
                shipped_parts(id)
            except FileNotFoundError:
                continue
            return True
    return False
