"""Several adapters: sums against PEFT's, lower ranks, and switching that leaves the base alone."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_module
from peft import PeftModel
from safetensors.torch import load_file, save_file

from afina.core.errors import AdapterError
from afina.engine.ops import Segments
from afina.lora import Adapters, LoraConfig, combine, inject, load_adapter, lora_layers, merge, rerank, save_adapter
from afina.models.model import unshared

IDS = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))


def output(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def save(folder: Path, seed: int, kind: str = "llama", **settings) -> Path:
    """A trained adapter, as far as anyone can tell."""
    model = tiny_module(kind)
    config = LoraConfig(**{"rank": 4, "alpha": 12.0} | settings)
    inject(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name or name.endswith("rows"):
            p.data = 0.2 * torch.randn(p.shape, generator=generator)
    save_adapter(model, config, folder, "tiny")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / "a", 1), save(tmp_path / "b", 2, alpha=5.0)]


KINDS = ["linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_kind", ["llama", "gpt2"])
def test_sums_are_peft_s(kind: str, model_kind: str, tmp_path: Path) -> None:
    folders = [save(tmp_path / "a", 1, model_kind), save(tmp_path / "b", 2, model_kind, alpha=5.0)]
    weights = [0.7, -0.4] if kind in ("linear", "cat", "svd") else [0.7, 0.4]
    # A density that keeps all makes DARE's choice no matter of chance; TIES is compared at another.
    density = 1.0 if "dare" in kind else 0.4
    combine(folders, weights, tmp_path / "sum", kind=kind, density=density)
    ours = tiny_module(model_kind)
    load_adapter(ours, tmp_path / "sum")
    theirs = PeftModel.from_pretrained(tiny_module(model_kind), folders[0], adapter_name="a")
    theirs.load_adapter(folders[1], "b")
    theirs.add_weighted_adapter(["a", "b"], weights, "sum", combination_type=kind, density=density, svd_rank=None)
    theirs.set_adapter("sum")
    for path, layer in lora_layers(ours):
        module = theirs.get_base_model().get_submodule(path)
        expected = module.get_delta_weight("sum")
        expected = expected.T if layer.transposed else expected
        assert torch.allclose(layer.delta(), expected, atol=1e-5), path
    assert torch.allclose(output(ours), output(theirs), atol=1e-4)


def test_dare_keeps_the_expected_value(tmp_path: Path, folders: list[Path]) -> None:
    for kind in ("dare_linear", "dare_ties"):
        combine(folders, [1.0, 1.0], tmp_path / kind, kind=kind, density=0.5, seed=3)
        combine(folders, [1.0, 1.0], tmp_path / f"{kind}-again", kind=kind, density=0.5, seed=3)
        combine(folders, [1.0, 1.0], tmp_path / f"{kind}-other", kind=kind, density=0.5, seed=4)
        first, again, other = (
            (tmp_path / name / "adapter_model.safetensors").read_bytes()
            for name in (kind, f"{kind}-again", f"{kind}-other")
        )
        assert first == again
        assert first != other
    from afina.lora.arithmetic import Pruning, _dropped

    x = torch.ones(200, 200)
    dropped = _dropped([x], Pruning(0.25, 0))[0]
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


def test_a_lower_rank_states_what_is_lost(tmp_path: Path, folders: list[Path]) -> None:
    combine(folders, [1.0, 0.5], tmp_path / "cat", kind="cat")
    assert rerank(tmp_path / "cat", 8, tmp_path / "same") == pytest.approx(0, abs=1e-6)
    full, same, less = tiny_module(), tiny_module(), tiny_module()
    load_adapter(full, tmp_path / "cat")
    load_adapter(same, tmp_path / "same")
    assert torch.allclose(output(full), output(same), atol=1e-4)
    error = rerank(tmp_path / "cat", 3, tmp_path / "less")
    load_adapter(less, tmp_path / "less")
    deltas = [dict(lora_layers(m)) for m in (full, less)]
    lost = sum((deltas[0][p].delta() - deltas[1][p].delta()).square().sum() for p in deltas[0])
    total = sum(layer.delta().square().sum() for layer in deltas[0].values())
    assert error == pytest.approx((lost / total).sqrt().item(), rel=1e-4)
    assert 0.1 < error < 1


def test_what_cannot_be_summed(tmp_path: Path, folders: list[Path]) -> None:
    other = save(tmp_path / "r8", 3, rank=8)
    with pytest.raises(AdapterError, match="one rank"):
        combine([folders[0], other], [1, 1], tmp_path / "x", kind="linear")
    combine([folders[0], other], [1, 1], tmp_path / "svd", kind="svd")
    with pytest.raises(AdapterError, match="more than A and B"):
        combine([folders[0], save(tmp_path / "dora", 1, variant="dora")], [1, 1], tmp_path / "x")
    wide = shutil.copytree(folders[0], tmp_path / "wide")
    path = wide / "adapter_model.safetensors"
    state = load_file(path)
    save_file({name: torch.cat([value, value], 1) for name, value in state.items()}, path)
    with pytest.raises(AdapterError, match=r"A and B of .* do not fit"):
        combine([folders[0], wide], [1, 1], tmp_path / "x")
    without = {name: value for name, value in state.items() if "lora_B" not in name}
    save_file(without, path)
    with pytest.raises(AdapterError, match=r"A and B of .* do not fit"):
        combine([folders[0], wide], [1, 1], tmp_path / "x")
    doubled = {name: torch.cat([value, value], 1) if "lora_A" in name else value for name, value in state.items()}
    save_file(doubled, path)
    with pytest.raises(AdapterError, match="different bases"):
        combine([folders[0], wide], [1, 1], tmp_path / "x")
    with pytest.raises(AdapterError, match="a weight each"):
        combine(folders, [1.0], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_switching_leaves_the_base_bit_identical(tmp_path: Path, folders: list[Path], tiny) -> None:
    tokens = save(tmp_path / "tokens", 5, trainable_tokens=(3, 9), modules_to_save=("model.norm",))
    for model in (tiny_module(), tiny_module("llama")):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        plain = output(model)
        adapters = Adapters(model)
        adapters.attach("a", folders[0])
        first = output(model)
        adapters.attach("b", folders[1])
        adapters.attach("tokens", tokens)
        assert adapters.names == ("a", "b", "tokens")
        assert not torch.equal(output(model), first)
        adapters.use("a")
        assert torch.equal(output(model), first)
        with adapters.using(None):
            assert torch.equal(output(model), plain)
            with adapters.using("tokens"):
                expected = tiny_module()
                load_adapter(expected, tokens)
                assert torch.equal(output(model), output(expected))
        assert torch.equal(output(model), first)
        assert torch.allclose(output(merge(model)), first, atol=1e-4)
        with pytest.raises(AdapterError, match="attached already"):
            adapters.attach("a", folders[0])
        with pytest.raises(AdapterError, match=r"no adapter 'c'"):
            adapters.use("c")
        broken = tmp_path / "broken"
        broken.mkdir(exist_ok=True)
        with pytest.raises(AdapterError, match="contains no adapter"):
            adapters.attach("broken", broken)
        assert torch.equal(output(model), first)
        adapters.delete("a")
        assert adapters.active is None
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())


def test_switching_in_the_decoder(tmp_path: Path, folders: list[Path], tiny) -> None:
    ids = IDS[0]
    packed = unshared(ids, ids, Segments((0, len(ids))))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return tiny.model.label_logits(packed)

    plain = logits()
    adapters = Adapters(tiny.model.module)
    adapters.attach("a", folders[0])
    first = logits()
    adapters.attach("b", folders[1])
    assert not torch.allclose(logits(), first, atol=0.01)
    adapters.use("a")
    assert torch.equal(logits(), first)
    adapters.use(None)
    assert torch.equal(logits(), plain)
    assert not torch.allclose(first, plain, atol=0.01)
