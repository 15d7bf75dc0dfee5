"""Memory while a base is read and joined: no weights are in it twice."""

from pathlib import Path

import pytest
import torch
from allocated import Allocated
from conftest import byte_tokenizer, save_tiny, tiny_config
from gguf_files import write
from transformers import AutoModelForCausalLM

from afina.engine.blocks import weight_bytes
from afina.engine.ops import Segments
from afina.lora import LoraConfig, inject
from afina.models import load_base
from afina.models.load import Base
from afina.models.model import unshared

IDS = torch.arange(3, 23)
PACKED = unshared(IDS, IDS.roll(-1), Segments((0, 12, 20)))


def adapted(base: Base, rank: int = 16) -> Base:
    inject(base.model.module, LoraConfig(rank=rank))
    base.model.module.train()
    return base


def addresses(base: Base) -> dict[str, int]:
    named = base.model.module.named_parameters()
    return {name.replace(".base", ""): p.data_ptr() for name, p in named if not p.requires_grad}


def test_the_peak_is_the_model_and_a_tensor(tmp_path: Path) -> None:
    """From the first byte that is read to the end of the first pass with adapters."""
    config = tiny_config()
    config.hidden_size, config.intermediate_size = 256, 4096
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with Allocated() as memory:
        base = load_base(str(tmp_path), precision="fp32", device="cpu")
        weights = weight_bytes(base.model.module)
        largest = max(p.nbytes for p in base.model.module.parameters())
        assert memory.now <= weights + largest / 100
        assert weights <= memory.most < weights + 1.1 * largest
        with torch.no_grad():
            adapted(base).model.summed_loss(PACKED)
        assert memory.most < weights + 1.5 * largest  # with the activations


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "Q8_0"])
def test_weights_are_read_where_products_read_them(kind: str, tmp_path: Path) -> None:
    """An adapter of the default's rank moves none of them; the numbers are those of layers that are joined later."""
    if kind == "Q8_0":
        write(tmp_path / "model.gguf", "llama", kind)
    path = tmp_path / "model.gguf" if kind == "Q8_0" else save_tiny(tmp_path / kind, kind)
    base = load_base(str(path), precision="fp32", device="cpu")
    apart = load_base(str(path), precision="fp32", device="cpu")
    for parameter in apart.model.module.parameters():
        parameter.data = parameter.data.clone()  # in memory of its own
    before = addresses(base)
    losses = [adapted(each).model.summed_loss(PACKED) for each in (base, apart)]
    assert addresses(base) == before
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    of_apart = dict(apart.model.module.named_parameters())
    for name, parameter in base.model.module.named_parameters():
        assert (parameter.grad is None) == (of_apart[name].grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, of_apart[name].grad)


def test_a_higher_rank_joins_once_more(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "llama", "Q8_0")
    base = load_base(str(tmp_path / "model.gguf"), precision="fp32", device="cpu")
    before = addresses(base)
    adapted(base, 17).model.summed_loss(PACKED)
    after = addresses(base)
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 2 * 7  # each linear layer
