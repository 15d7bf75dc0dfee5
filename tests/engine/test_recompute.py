"""Norms and gates that the backward pass makes again: the same gradients, and fewer bytes kept for it."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from allocated import Allocated
from test_decoder import batch, ours, randomise

from afina.engine import decoder
from afina.lora import LoraConfig, inject
from afina.models.causal import DecoderModel


def gradients(model: DecoderModel) -> tuple[int, list[torch.Tensor]]:
    """And the bytes that are kept for the backward pass."""
    model.module.zero_grad()
    with Allocated() as memory:
        loss = model.summed_loss(batch())
        kept = memory.now
    loss.backward()
    return kept, [p.grad for p in model.module.parameters() if p.grad is not None]


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "olmo2", "gpt2", "gpt-neox", "phi3"])
def test_the_gradients_are_the_same_bits(name: str, kernels: bool, tmp_path: Path, monkeypatch) -> None:
    model = ours(name, tmp_path, kernels)
    inject(model.module, LoraConfig(rank=4))
    randomise(model.module)
    model.module.train()
    gradients(model)  # tables are made
    less, found = gradients(model)
    monkeypatch.setattr(decoder, "made_again", lambda *_: nullcontext())
    more, expected = gradients(model)
    assert less < 0.85 * more
    assert len(found) == len(expected) > 10
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
