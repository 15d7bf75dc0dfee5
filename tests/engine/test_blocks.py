"""Quantised weights against the gguf package's reading of them, and models over them against the same weights
dequantised."""

import threading
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import save_tiny, tiny_config, tiny_module
from gguf_files import FAMILIES, write
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForSequenceClassification

from afina.core.device import cache_folder
from afina.core.errors import AdapterError, BaseModelError, SettingsError
from afina.engine import blocks, kernels
from afina.engine.blocks import NF4, BlockLinear, Blocks, parameter_count, quantise, quantise_linears
from afina.engine.formats import numbers_of
from afina.engine.joined import JoinedLinear
from afina.engine.ops import Segments, chosen
from afina.engine.ops.unpack import nf4_levels
from afina.lora import LoraConfig, inject, merge
from afina.lora.merging import dequantise
from afina.models import load_base
from afina.models.model import unshared

IDS = torch.randint(3, 250, (40,), generator=torch.Generator().manual_seed(0))
PACKED = unshared(IDS, IDS.roll(-1), Segments((0, 15, 40)))


@pytest.fixture(params=["compiled", "by hand"])
def how(request, monkeypatch) -> None:
    if request.param == "by hand":
        monkeypatch.setattr(kernels, "loaded", lambda: None)
    else:
        kernels.load(cache_folder())


@pytest.mark.parametrize("number", blocks.GGML_FORMATS)
def test_every_format_is_read_as_the_gguf_package_reads_it(number: int, how) -> None:
    kind = gguf.GGMLQuantizationType(number)
    size, width = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(number).integers(0, 256, (6, 512 // size * width), dtype=np.uint8)
    halves = raw.reshape(-1, width)
    for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind.name, (0, 2)):
        halves[:, at : at + 2] = np.frombuffer(np.float16([-0.03, 6e-6]).tobytes(), np.uint8)[:2]
    expected = torch.from_numpy(gguf.dequantize(raw, kind))
    found = Blocks(torch.from_numpy(raw), number, 512, torch.float32)
    assert expected.abs().max() > 0.05
    assert torch.allclose(found.dequantised(), expected, atol=1e-6)
    assert torch.allclose(found.dequantised(torch.bfloat16).float(), expected, rtol=2**-8, atol=1e-6)
    out = torch.zeros(2, 600)  # into a part of another matrix
    found.take(torch.tensor([4, 1])).dequantise_into(out[:, 8:520])
    assert torch.equal(out[:, 8:520], found.dequantised()[[4, 1]])
    assert not out[:, 520:].any()


def test_nf4_takes_the_nearest_level(how) -> None:
    torch.manual_seed(0)
    w = torch.randn(5, 192) * torch.tensor([1.0, 0.01, 30.0, 1.0, 0.0])[:, None]
    found = quantise(w, "nf4", torch.float32)
    assert found is not None
    assert found.kind == NF4
    # Levels as the paper prints them (appendix E), and the density of its storage.
    assert torch.allclose(nf4_levels()[[0, 1, 7, 8, 15]], torch.tensor([-1.0, -0.6961928, 0.0, 0.0795803, 1.0]))
    assert found.data.shape[1] == 192 // 2 + 192 // 64 + 8
    blocks_ = w.view(5, 3, 64)
    scales = blocks_.abs().amax(2, keepdim=True)
    step = (scales.amax(1, keepdim=True) - scales.amin(1, keepdim=True)) / 255
    levels = nf4_levels()
    best = (blocks_[..., None] - scales[..., None] * levels).abs().amin(3)
    error = (found.dequantised().view(5, 3, 64) - blocks_).abs()
    assert (error <= best + step + 1e-7).all()  # a scale is off by half a step at most, and a level follows it
    assert quantise(torch.randn(2, 100), "nf4", torch.float32) is None
    assert quantise(torch.randn(2, 100), "int8", torch.float32) is None


def test_int8_is_off_by_about_half_a_step(how) -> None:
    w = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    found = quantise(w, "int8", torch.float32)
    assert found is not None
    step = w.view(7, 3, 32).abs().amax(2) / 127
    assert ((found.dequantised() - w).abs().view(7, 3, 32) <= step[..., None] * 0.57).all()
    assert found.data.numel() == w.numel() // 32 * 34


def test_int8_has_the_bytes_of_ggml() -> None:
    w = torch.randn(9, 640, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 4, 9)[:, None]
    w[3, 64:96] = 0
    w[4, :32] = torch.tensor([127.0, 0.5, -0.5, 1.5, *[2.5] * 28])  # halves, which round away from zero
    expected = gguf.quantize(w.numpy(), gguf.GGMLQuantizationType.Q8_0)
    found = quantise(w, "int8", torch.float32)
    assert found is not None
    assert torch.equal(found.data, torch.from_numpy(expected))


@pytest.mark.parametrize("number", blocks.GGML_FORMATS)
def test_rows_of_any_shape_are_read(number: int) -> None:
    _, numbers, size = blocks.GGML_FORMATS[number]
    raw = torch.randint(0, 256, (2, 3, 2 * size), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    found = numbers_of(raw, number)
    assert found.shape == (2, 3, 2 * numbers)
    assert torch.equal(found[1, 2].nan_to_num(), numbers_of(raw[1, 2], number).nan_to_num())


@pytest.mark.parametrize("tile", [blocks.TILE, 64 * 128])
def test_a_layer_is_the_product_with_its_numbers(tile: int, monkeypatch, how) -> None:
    monkeypatch.setattr(blocks, "TILE", tile)
    torch.manual_seed(0)
    layer = BlockLinear(quantise(torch.randn(200, 128), "nf4", torch.float32), torch.randn(200))
    x = torch.randn(2, 9, 128, requires_grad=True)
    dy = torch.randn(2, 9, 200)
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.allclose(y, F.linear(x, layer.weight, layer.bias), atol=1e-4)
    assert torch.allclose(dx, dy @ layer.weight, atol=1e-4)
    assert torch.equal(layer.dequantised()(x), F.linear(x, layer.weight, layer.bias))
    layer.to(torch.bfloat16)
    assert layer(x.detach().to(torch.bfloat16)).dtype == layer.weight.dtype == torch.bfloat16


def owner(kind: str) -> nn.Module:
    """Three layers over one input; the second is an ordinary one where `kind` is mixed."""
    torch.manual_seed(0)
    module = nn.Module()
    for name, width in (("q", 64), ("k", 32), ("v", 96)):
        plain = nn.Linear(128, width, bias=name == "k").to(torch.bfloat16)
        held = quantise(plain.weight.detach(), "nf4" if name == "v" else "int8", torch.bfloat16)
        assert held is not None
        whole = kind == "mixed" and name == "k"
        module.add_module(name, plain if whole else BlockLinear(held, plain.bias))
    inject(module, LoraConfig(rank=16, target_modules=("q", "v"), alpha=7.0))
    for name, p in module.named_parameters():
        if "lora" in name:
            p.data = 0.2 * torch.randn(p.shape)
    return module


@pytest.mark.parametrize("kind", ["blocks", "mixed"])
@pytest.mark.parametrize("rows", [1, 2, 5, 32, 50])
def test_joined_layers_over_blocks_are_those_over_numbers(kind: str, rows: int) -> None:
    own_ops = chosen(torch.device("cpu"), cache_folder())
    module, plain = owner(kind), owner(kind)
    dequantise(plain)
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(rows)).to(torch.bfloat16)
    with torch.no_grad():
        found, expected = (JoinedLinear(each.eval(), "q", "k", "v")(x, own_ops) for each in (module, plain))
    assert (found.float() - expected.float()).abs().max() <= 2e-2 * expected.float().abs().max()
    grads = []
    for each in (module, plain):
        own = x.clone().requires_grad_()
        JoinedLinear(each.train(), "q", "k", "v")(own, own_ops).square().sum().backward()
        grads.append([own.grad, each.q.lora_a.grad, each.v.lora_b.grad])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-2 * float(b.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_file_kept_in_blocks_is_the_file_in_numbers(family: str, precision: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", family, "Q4_1")
    kept, whole = (load_base(str(tmp_path / "model.gguf"), precision=precision, quantize=how) for how in ("keep", None))
    words = kept.model.module.get_input_embeddings()
    assert isinstance(words.blocks, Blocks)
    assert kept.facts == whole.facts
    assert blocks.weight_bytes(kept.model.module) < 0.5 * blocks.weight_bytes(whole.model.module) or precision == "bf16"
    with torch.no_grad():
        a, b = (base.model.label_logits(PACKED).float() for base in (kept, whole))
    assert torch.allclose(a, b, atol=(1e-4 if precision == "fp32" else 5e-2) * float(b.abs().max()))
    if precision == "fp32":
        grads = []
        for base in (kept, whole):
            inject(base.model.module, LoraConfig(rank=4), 0)
            base.model.module.train()
            for p in base.model.module.parameters():
                if p.requires_grad:
                    p.data += 0.01
            base.model.summed_loss(PACKED).backward()
            grads.append([p.grad for p in base.model.module.parameters() if p.requires_grad])
        for a, b in zip(*grads, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_generation_from_blocks_is_that_from_numbers(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "llama", "Q4_0")
    from afina.models import generate

    kept, whole = (load_base(str(tmp_path / "model.gguf"), precision="fp32", quantize=how) for how in ("keep", None))
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13]]
    assert generate(kept, prompts, 12) == generate(whole, prompts, 12)


@pytest.mark.parametrize(("variant", "init"), [
    ("lora", "kaiming"), ("lora", "pissa"), ("lora", "lora_ga"), ("dora", "kaiming"), ("vera", "kaiming"),
    ("lora_fa", "kaiming"),
])  # fmt: skip
def test_methods_and_merging_work_on_quantised_layers(variant: str, init: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "llama")
    base = load_base(str(tmp_path / "model.gguf"), precision="fp32", quantize="nf4")
    module = base.model.module
    with torch.no_grad():
        before = base.model.label_logits(PACKED)
    config = LoraConfig(rank=4, variant=variant, init=init)
    inject(module, config, 0, lambda: base.model.summed_loss(PACKED).backward())
    with torch.no_grad():
        assert torch.allclose(base.model.label_logits(PACKED), before, atol=1e-4)
    with torch.no_grad():
        for p in module.parameters():
            p.grad = None
            if p.requires_grad:
                p += 0.02
    held = [each.data.clone() for each in module.modules() if isinstance(each, Blocks)]
    merged = merge(module)
    assert not any(isinstance(each, Blocks) for each in merged.modules())
    with torch.no_grad():
        adapted = base.model.label_logits(PACKED)
        base.model.module = merged
        assert torch.allclose(base.model.label_logits(PACKED), adapted, atol=1e-3 * float(adapted.abs().max()))
    assert (adapted - before).abs().max() > 1e-3
    now = [each.data for each in module.modules() if isinstance(each, Blocks)]
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))


def test_loftq_makes_up_for_what_quantisation_lost(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "llama")
    whole, base, usual = (
        load_base(str(tmp_path / "model.gguf"), precision="fp32", quantize=q) for q in (None, "nf4", "nf4")
    )
    weights = {path: m.weight for path, m in whole.model.module.named_modules() if isinstance(m, nn.Linear)}
    inject(base.model.module, LoraConfig(rank=32, init="loftq"), 0, originals=weights.__getitem__)
    inject(usual.model.module, LoraConfig(rank=32), 0)
    with torch.no_grad():
        target, better, plain = (each.model.label_logits(PACKED) for each in (whole, base, usual))
    assert (better - target).norm() < 0.8 * (plain - target).norm()


def test_what_cannot_be_done_is_said(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "model.gguf", "llama")
    path = str(tmp_path / "model.gguf")
    with pytest.raises(BaseModelError, match="contains no blocks"):
        load_base(path, quantize="keep")
    with pytest.raises(BaseModelError, match="--quantize keep is for GGUF files"):
        load_base(str(tiny_folder), quantize="keep")
    base = load_base(path, precision="fp32", quantize="nf4")
    assert base.facts.parameters == parameter_count(load_base(path, precision="fp32").model.module)
    with pytest.raises(AdapterError, match="is quantised, and quantised weights"):
        inject(base.model.module, LoraConfig(target_modules=("q_proj",), modules_to_save=("down_proj",)))
    narrow = nn.Sequential(nn.Linear(10, 10))
    with pytest.raises(BaseModelError, match="no linear layer has rows of whole blocks"):
        quantise_linears(narrow, "nf4", torch.float32)


@pytest.mark.parametrize("stored", ["llama", "gpt2", "gpt2 without its head", "gguf"])
def test_weights_are_quantised_as_they_are_read(stored: str, tmp_path: Path, monkeypatch) -> None:
    kind = stored.split()[0]
    path = tmp_path / "model.gguf"
    if stored == "gguf":
        write(path, "llama")
    else:
        path = save_tiny(tmp_path / "model", kind)
    if stored.endswith("head"):
        config = (path / "config.json").read_text()
        tiny_module(kind).base_model.save_pretrained(path)
        (path / "config.json").write_text(config)
    whole = load_base(str(path), precision="fp32").model
    quantise_linears(whole.module, "int8", torch.float32)
    held: list[weakref.ref] = []

    def alone(weight: torch.Tensor, *args):
        assert sum(each() is not None for each in held) <= 1  # the one before it, which the reader lets go of next
        held.append(weakref.ref(weight))
        return quantise(weight, *args)

    monkeypatch.setattr(blocks, "quantise", alone)
    read = load_base(str(path), precision="fp32", quantize="int8").model
    expected, found = (
        {path: each.data for path, each in model.module.named_modules() if isinstance(each, Blocks)}
        for model in (whole, read)
    )
    assert len(held) == len(expected) >= 8
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[each], expected[each]) for each in expected)
    with torch.no_grad():
        assert torch.equal(read.label_logits(PACKED), whole.label_logits(PACKED))


def test_any_model_of_transformers_can_be_quantised() -> None:
    config = tiny_config("bert")
    config.hidden_size = config.intermediate_size = 64
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    ids = IDS[None]
    with torch.no_grad():
        before = model(ids).logits
        assert quantise_linears(model, "int8", torch.float32, ("classifier",)) == []
        after = model(ids).logits
    assert type(model.classifier) is nn.Linear
    assert isinstance(model.bert.pooler.dense, BlockLinear)
    assert torch.allclose(after, before, atol=0.02 * float(before.abs().max()))
    assert not torch.equal(after, before)
    inject(model, LoraConfig(rank=4), 0)
    model(ids).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_generating_before_training_leaves_nothing_that_training_cannot_use(tmp_path: Path) -> None:
    from afina.models import generate

    write(tmp_path / "model.gguf", "llama")
    base = load_base(str(tmp_path / "model.gguf"), precision="fp32")
    inject(base.model.module, LoraConfig(rank=4), 0)
    generate(base, [[5, 6, 7]], 3)
    base.model.module.train()
    base.model.summed_loss(PACKED).backward()


@pytest.mark.parametrize(("device", "same"), [("meta", True), ("cpu", False)])
def test_threads_share_a_cards_scratch_in_turn(device: str, same: bool) -> None:
    """There autograd does the backward pass in a thread of its own, which must not take as much memory again."""
    held = Blocks(torch.empty(2, 34, dtype=torch.uint8, device=device), 8, 32, torch.float32)
    found: list[Tensor] = []

    def take() -> None:
        with blocks.scratch(2, 32, held) as out:
            found.append(out)

    thread = threading.Thread(target=take)
    with blocks.scratch(2, 32, held) as own:
        thread.start()
        thread.join(0.2)
        assert bool(found) != same  # it waits
    thread.join()
    assert (found[0].untyped_storage()._cdata == own.untyped_storage()._cdata) == same


def test_loftq_leaves_layers_that_lost_nothing_their_usual_start() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 40))
    weights = {"0": model[0].weight.detach().clone(), "1": model[1].weight.detach().clone()}
    model[0] = BlockLinear(quantise(weights["0"], "nf4", torch.float32), model[0].bias)
    inject(model, LoraConfig(rank=4, init="loftq"), 0, originals=weights.__getitem__)
    assert model[0].lora_b.any()
    assert model[1].lora_a.any()
    assert not model[1].lora_b.any()
    plain = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(AdapterError, match="no layer lost anything"):
        inject(plain, LoraConfig(rank=4, init="loftq"), 0, originals=lambda _: plain[0].base.weight)


@pytest.mark.parametrize("setting", [{"quantize": "int4"}, {"quantize": True}, {"precision": "fp64"}, {"task": "foo"}])
def test_settings_that_are_none_are_refused(setting: dict, tiny_folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"it takes|choose from"):
        load_base(str(tiny_folder), **setting)
