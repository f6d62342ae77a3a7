"""VL-GPT: "A Generative Pre-trained Transformer for Vision and Language Understanding and Generation" (2023).

https://arxiv.org/abs/2312.09251; AILab-CVC/VL-GPT holds neither code nor weights. Written from the paper.

A LLaMA that reads and writes words and continuous embeddings of pictures in one sequence:

* a picture is the words [IMG] and [/IMG] around `visual_tokens` embeddings (section 3.2);
* the language head predicts words, a regression head of its own the next visual embedding; after [IMG] as many
  outputs as a picture has come from the regression head and are read again (section 3.2).

The language model is transformers' `LlamaForCausalLM` under its own names; the regression head's name and its
single linear layer, and that [IMG] and [/IMG] are words of the vocabulary, are this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Cache, LlamaForCausalLM


@dataclass(frozen=True)
class VLGPTConfig:
    """Sizes under transformers' argument names; the defaults are those of LLaMA 7B with [IMG] and [/IMG] added.

    Without `num_key_value_heads`, each query head has its own.
    `visual_tokens` embeddings stand for a picture; `begin_image` and `end_image` are the ids of the two words.
    """

    vocab_size: int = 32002
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    visual_tokens: int = 32
    begin_image: int = 32000
    end_image: int = 32001


def llama(config: VLGPTConfig) -> LlamaForCausalLM:
    """Build the language model with random weights."""
    # Takes seconds to import, which only those who build it should spend.
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_position_embeddings,
            # No word of the vocabulary is padding or has a rule of its own here.
            bos_token_id=None,
            eos_token_id=None,
        )
    )


@dataclass(frozen=True)
class Reading:
    """What the network makes of a sequence: hidden states [B, N, dim] after the last norm, and what it may go on from."""

    hidden: Tensor
    cache: Cache


class VLGPT(nn.Module):
    """The language model and its two heads."""

    def __init__(self, config: VLGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.llama = llama(config)
        self.visual_head = nn.Linear(config.hidden_size, config.hidden_size)

    def embed(self, parts: Sequence[Tensor]) -> Tensor:
        """Join a sequence's parts to embeddings [B, N, dim].

        A part is ids of words [B, n], or embeddings [B, n, dim], as of a picture between its two words.
        """
        table = self.llama.get_input_embeddings()
        return torch.cat(
            [part if part.is_floating_point() else table(part) for part in parts], dim=1
        )

    def read(self, embeddings: Tensor, before: Reading | None = None) -> Reading:
        """Read embeddings [B, N, dim] causally, after those that `before` has read, whose cache is extended in place.

        Raises ValueError if the sequence grows beyond the positions that the network knows.
        """
        past = before.cache if before else None
        length = embeddings.shape[1] + (past.get_seq_length() if past else 0)
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"{length} embeddings do not fit into {self.config.max_position_embeddings} places"
            )
        result = self.llama.model(inputs_embeds=embeddings, past_key_values=past, use_cache=True)
        return Reading(result.last_hidden_state, result.past_key_values)

    def words(self, reading: Reading) -> Tensor:
        """Return the logits of the next words [B, N, vocabulary]."""
        return self.llama.lm_head(reading.hidden)

    def visual(self, reading: Reading) -> Tensor:
        """Return the next visual embeddings [B, N, dim]."""
        return self.visual_head(reading.hidden)


def generate(
    network: VLGPT, prompt: Tensor, most: int, choose: Callable[[Tensor], int], end: int
) -> Iterator[int | Tensor]:
    """Yield what follows one prompt [1, N, dim]: ids of words, and embeddings [visual_tokens, dim] of whole pictures.

    `choose` takes an id from logits [vocabulary]. The words [IMG] and [/IMG] are yielded too; `end` is yielded last,
    unless `most` words are reached first. Raises ValueError where the sequence grows too long.
    """
    config = network.config
    reading = network.read(prompt)
    for _ in range(most):
        word = choose(network.words(reading)[0, -1])
        yield word
        if word == end:
            return
        reading = network.read(
            network.embed([torch.tensor([[word]], device=prompt.device)]), reading
        )
        if word == config.begin_image:
            picture = []
            for _ in range(config.visual_tokens):
                picture.append(network.visual(reading)[:, -1:])
                reading = network.read(picture[-1], reading)
            yield torch.cat(picture, dim=1)[0]
