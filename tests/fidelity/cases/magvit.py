"""MAGVIT: tokenizers, masked transformer, decoding and conditions, whichever the file's config is of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.generation._magvit_conditions import TASKS, condition
from models.generation._magvit_decoding import Commit, mask_ratio
from models.generation._magvit_transformer import BertConfig, MaskedTransformer
from models.reconstruction._magvit_3dvq import TokenizerConfig, VideoTokenizer
from models.reconstruction._magvit_lfq import (
    LfqConfig,
    LfqTokenizer,
    averaged,
    code_of,
    signs,
    tokens_of,
)
from tests.fidelity.golden import Golden, load

Outputs = dict[str, Tensor]


def outputs(golden: Golden) -> Outputs:
    names = {name for name, _ in golden.state}
    if "quantizer.codebook" in names:
        found = _video_tokenizer(golden)
    elif "decoder.adaptive.0.gamma.weight" in names:
        found = _picture_tokenizer(golden)
    elif "num_iter" in golden.config:
        found = _decoding(golden)
    else:
        found = _transformer(golden)
    return {name: output.contiguous() for name, output in found.items()}


def _video_tokenizer(golden: Golden) -> Outputs:
    given = golden.config
    multipliers = tuple(given["channel_multipliers"])
    temporal = given["temporal_downsample"]
    if isinstance(temporal, int):
        temporal = [level < temporal for level in range(len(multipliers) - 1)]
    config = TokenizerConfig(
        filters=given["filters"],
        channel_multipliers=multipliers,
        temporal_downsample=tuple(temporal),
        num_res_blocks=given["num_res_blocks"],
        embedding_dim=given["embedding_dim"],
        codebook_size=given["codebook_size"],
    )
    network = load(VideoTokenizer(config), golden.weights())
    latent = network.encoder(golden.input("video"))
    return {
        "latent": latent,
        "ids": network.quantizer(latent).float(),
        "decoded_ids": network.decode(golden.input("ids")),
    }


def _picture_tokenizer(golden: Golden) -> Outputs:
    given = golden.config
    config = LfqConfig(
        ch=given["ch"],
        ch_mult=tuple(given["ch_mult"]),
        num_res_blocks=given["num_res_blocks"],
        z_channels=given["z_channels"],
        in_channels=given["in_channels"],
        out_ch=given["out_ch"],
    )
    network = load(LfqTokenizer(config), averaged({"state_dict": golden.weights()}))
    image = golden.input("image")
    latent = network.encoder(image * 2 - 1)
    ids = golden.input("ids")
    if ids.ndim == 2:
        ids = ids.unflatten(1, tuple(side // config.stride for side in image.shape[-2:]))
    return {
        "latent": latent,
        "quantized": signs(latent),
        "ids": tokens_of(latent).float(),
        "codes": code_of(ids, config.z_channels),
        "decoded_ids": network.decode(ids),
    }


def _network(golden: Golden) -> MaskedTransformer:
    given = golden.config
    names = (
        *("hidden_size", "num_layers", "num_heads", "mlp_dim", "codebook_size"),
        *("num_classes", "special_tokens", "num_segments"),
    )
    config = BertConfig(
        **{name: given[name] for name in names if name in given},
        latent_shape=tuple(given["latent_shape"]),
        prefix_length=len(given["prefix_ids"]),
    )
    return load(MaskedTransformer(config), golden.weights())


def _transformer(golden: Golden) -> Outputs:
    given = golden.config
    network = _network(golden)
    tokens, conditions = golden.input("tokens"), golden.input("cond_tokens")
    score = golden.input("mask_score")
    ratio = torch.tensor(float(given["mask_ratio"]))
    first = torch.zeros_like(tokens, dtype=torch.bool)
    first[:, :1] = True
    plain = Commit().masked(tokens, score, ratio)
    commit = Commit("cond->input", conditions, first).masked(tokens, score, ratio)
    fed = plain if given.get("transformer_input", "plain mask") == "plain mask" else commit
    prefix = torch.tensor([given["prefix_ids"]]).expand(len(tokens), -1)
    found = {
        "logits": network(prefix, fed.inputs, fed.segments).flatten(1, 3),
        "input_ids": torch.cat([prefix, fed.inputs.flatten(1)], dim=1).float(),
        "commit_tokens": commit.inputs.float(),
        "commit_weights": commit.unknown.float(),
        "commit_segments": commit.segments.float(),
    }
    return found | _schedules(golden, tokens[0].numel()) | _conditions(golden)


def _schedules(golden: Golden, places: int) -> Outputs:
    """Return `schedule_A_B...`: the mask ratios of A after each step, then those of B, and so on."""
    found = {}
    for name, record in golden.outputs.items():
        kind, _, methods = name.partition("_")
        if kind == "schedule":
            steps = math.prod(record.shape) // len(methods.split("_"))
            found[name] = torch.stack(
                [
                    mask_ratio(torch.tensor((step + 1) / steps), places, method)
                    for method in methods.split("_")
                    for step in range(steps)
                ]
            )
    return found


def _conditions(golden: Golden) -> Outputs:
    """Return `TASK_video`, `TASK_video_mask` and `TASK_latent_mask` of every task that has a condition."""
    if "cond_video" not in golden.inputs:
        return {}
    video = golden.input("cond_video")
    found = {}
    for task in TASKS:
        if TASKS[task].given is not None:
            made = condition(task, video, tuple(golden.config["latent_shape"]))
            found |= {
                f"{task}_video": made.video,
                f"{task}_video_mask": made.pixels.float(),
                f"{task}_latent_mask": made.places.float(),
            }
    found |= {
        name.removeprefix("frame_"): value
        for name, value in found.items()
        if name.startswith("frame_interpolation")
    }
    return {name: _as_recorded(golden, name, value) for name, value in found.items()}


def _as_recorded(golden: Golden, name: str, value: Tensor) -> Tensor:
    """Return `value`, of which a file may hold the first along dimensions in which all are equal."""
    record = golden.outputs.get(name)
    if record is not None and len(record.shape) == value.ndim:
        value = value[tuple(slice(0, size) for size in record.shape)]
    return value


def _decoding(golden: Golden) -> Outputs:
    given = golden.config
    network = _network(golden)
    latent = tuple(given["latent_shape"])
    mode = given.get("condition_mode")
    if mode is None:
        commit, batch = Commit(), golden.outputs["tokens"].shape[0]
    else:
        tokens = golden.input("cond_tokens")
        first = torch.zeros_like(tokens, dtype=torch.bool)
        first[:, :1] = True
        commit, batch = Commit(mode, tokens, first), len(tokens)
    prefix = torch.tensor([given["prefix_ids"]]).expand(batch, -1)
    steps = int(given["num_iter"])
    grid = commit.start(batch, latent)
    streams = [torch.Generator().manual_seed(i) for i in range(batch)]
    found: Outputs = {}
    counts = []
    for step in range(steps):
        found[f"model_input_step{step + 1}"] = grid.inputs.float()
        counts.append((grid.inputs == -1).sum())
        logits = network(prefix, grid.inputs, grid.segments)
        tokens, grid = commit.step(
            grid,
            logits,
            (step + 1) / steps,
            streams,
            schedule=given.get("schedule", "cosine"),
            temperature=1e-7,
            choice_temperature=0.0,
        )
    found |= {"tokens": tokens.float(), "masked_or_refined_counts": torch.stack(counts).float()}
    return found
