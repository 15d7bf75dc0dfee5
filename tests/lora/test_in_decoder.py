"""Each method in Afina's own decoder, whose products are joined, against the same adapter in transformers' model."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_module
from torch.nn import functional as F

from afina.engine.ops import Segments
from afina.lora import LoraConfig, disabled, inject, load_adapter, save_adapter
from afina.models.load import load_base
from afina.models.model import unshared
from afina.training.baselines import baseline

IDS = torch.randint(3, 259, (11,), generator=torch.Generator().manual_seed(1))
LABELS = torch.cat([IDS[1:], torch.tensor([-100])])
PACKED = unshared(IDS, LABELS, Segments((0, 11)))
CONFIGS = {
    "dora": LoraConfig(rank=4, variant="dora"),
    "vera": LoraConfig(rank=4, variant="vera"),
    "lora_fa": LoraConfig(rank=4, variant="lora_fa"),
    "pissa": LoraConfig(rank=4, init="pissa"),
    "eva": LoraConfig(rank=4, init="eva"),
    "lora_ga": LoraConfig(rank=4, init="lora_ga"),
    "modules": LoraConfig(rank=4, modules_to_save=("model.norm", "lm_head")),
    "tokens": LoraConfig(rank=4, trainable_tokens=(int(IDS[0]), int(IDS[3]))),
}


def train(model, config, step) -> dict[str, torch.Tensor]:
    """Injects, takes three steps, and gives the gradients of the third."""
    inject(model, config, 0, lambda: step().backward() if config.init == "lora_ga" else step())
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        step().backward()
        optimizer.step()
    return {name: p.grad for name, p in own.items()}


def reloaded(base, config, folder: Path):
    """transformers' model with the adapter in `base` read from a file; it gives the same logits."""
    save_adapter(base.model.module, config, folder)
    again = tiny_module()
    load_adapter(again, folder)
    with torch.no_grad():
        logits = base.model.label_logits(unshared(IDS, IDS, Segments((0, 11))))
        assert torch.allclose(again(IDS[None]).logits[0], logits, atol=1e-4)
    return again


@pytest.mark.parametrize("name", CONFIGS)
def test_the_decoder_trains_as_transformers_does(name: str, tiny, tmp_path: Path) -> None:
    config, module, other = CONFIGS[name], tiny.model.module, tiny_module()
    ours = train(module, config, lambda: tiny.model.summed_loss(PACKED))
    theirs = train(other, config, lambda: F.cross_entropy(other(IDS[None]).logits[0, :-1], IDS[1:], reduction="sum"))
    assert ours.keys() == theirs.keys()
    for path, gradient in theirs.items():
        if name == "eva":  # singular vectors of nearly one size may come turned
            assert ours[path].norm().item() == pytest.approx(gradient.norm().item(), rel=0.05), path
            continue
        assert torch.allclose(ours[path], gradient, atol=2e-3 * gradient.abs().max().item() + 1e-5), path
    reloaded(tiny, config, tmp_path)


@pytest.mark.parametrize("method", ["full", "head", "last"])
def test_baselines_train_what_they_say(method: str, tiny, tmp_path: Path) -> None:
    module, other = tiny.model.module, tiny_module()
    config = baseline(module, method, 1)
    ours = train(module, config, lambda: tiny.model.summed_loss(PACKED))
    expected = {
        "full": {name for name, _ in other.named_parameters()},
        "head": {"model.norm.weight", "lm_head.weight"},
        "last": {n for n, _ in other.named_parameters() if "layers.1." in n} | {"model.norm.weight"},
    }[method]
    assert ours.keys() == expected
    again = reloaded(tiny, config, tmp_path)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == (method != "head")


@pytest.mark.parametrize("name", ["vera", "dora", "tokens", "modules"])
def test_switched_off_in_the_decoder_it_is_the_base(name: str, tiny) -> None:
    packed = unshared(IDS, IDS, Segments((0, 11)))
    with torch.no_grad():
        plain = tiny.model.label_logits(packed)
        inject(tiny.model.module, CONFIGS[name])
        for p in tiny.model.module.parameters():
            if p.requires_grad:
                p.add_(0.1)
        adapted = tiny.model.label_logits(packed)
        with disabled(tiny.model.module):
            assert torch.allclose(tiny.model.label_logits(packed), plain, atol=1e-5)
        assert torch.equal(tiny.model.label_logits(packed), adapted)
    assert not torch.allclose(adapted, plain, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_has_answered_can_be_trained(name: str, tiny_folder: Path) -> None:
    """What a forward pass in inference mode keeps for later ones may be needed by a backward pass."""
    base = load_base(str(tiny_folder), precision="bf16", device="cpu")

    def step() -> torch.Tensor:
        return base.model.summed_loss(PACKED)

    inject(base.model.module, CONFIGS[name], 0, lambda: step().backward() if name == "lora_ga" else step())
    with torch.inference_mode():
        base.model.label_logits(PACKED)
    step().backward()
    assert any(p.grad is not None and p.grad.any() for p in base.model.module.parameters())
