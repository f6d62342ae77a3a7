"""VL-GPT: words and pictures in one sequence, both ways."""

from __future__ import annotations

import pytest
import torch

from models.generation.vl_gpt_network import VLGPT, VLGPTConfig, generate

SMALL = VLGPTConfig(
    vocab_size=12,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=16,
    visual_tokens=3,
    begin_image=10,
    end_image=11,
)


@torch.inference_mode()
def test_pictures_are_read_and_written_between_words() -> None:
    torch.manual_seed(0)
    network = VLGPT(SMALL).eval()
    picture = torch.randn(1, 3, 16)
    prompt = network.embed([torch.tensor([[1, 10]]), picture, torch.tensor([[11, 4]])])
    assert prompt.shape == (1, 7, 16)
    chosen = iter([5, 10, 11, 2])
    word, begin, drawn, finish, end = generate(network, prompt, 9, lambda _: next(chosen), end=2)
    assert (word, begin, finish, end) == (5, 10, 11, 2)
    # What was written step by step is what the regression head says of the whole sequence at once.
    written = network.embed([prompt, torch.tensor([[5, 10]]), drawn[None]])
    whole = network.read(written)
    torch.testing.assert_close(network.visual(whole)[0, 8:11], drawn)
    other = network.read(network.embed([prompt[:, :2], picture + 1, prompt[:, 5:]]))
    before = network.read(prompt)
    torch.testing.assert_close(network.words(other)[:, :2], network.words(before)[:, :2])
    assert not torch.allclose(network.words(other)[:, -1], network.words(before)[:, -1])
    words = list(generate(network, prompt, 2, lambda logits: int(logits[:10].argmax()), end=-1))
    assert len(words) == 2
    with pytest.raises(ValueError, match="do not fit into 16 places"):
        list(generate(network, prompt, 9, lambda _: 10, end=2))
