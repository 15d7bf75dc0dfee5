"""Weights on their way to another device than the processor: on torch's `meta`, which computes shapes and holds
nothing."""

import re
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from conftest import save_tiny, tiny_config
from gguf_files import write
from transformers import AutoModelForCausalLM

from afina.engine.blocks import Blocks
from afina.engine.ops import TORCH, choice
from afina.models import load, load_base
from afina.models.formats import gguf as gguf_reader
from afina.models.formats import gguf_models, safetensors_files
from afina.models.formats.gguf import GGUF


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether numbers are finite cannot be asked of numbers that are nowhere, and nobody can name such a device."""
    for module in (safetensors_files, gguf_models, gguf_reader):
        monkeypatch.setattr(module, "check_numbers", lambda *_: None)
    monkeypatch.setattr(load, "pick_device", lambda _: torch.device("meta"))


def wide(folder: Path) -> Path:
    """A tiny folder whose rows fill whole blocks."""
    save_tiny(folder)
    config = tiny_config()
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def places(module: torch.nn.Module) -> set[str]:
    return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
def test_one_tensor_at_a_time_is_in_the_hosts_memory(quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = safetensors_files._tensors
    met: list[weakref.ref] = []

    def watched(*of) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in read(*of):
            met.append(weakref.ref(tensor))
            assert sum(each() is not None for each in met) <= 2  # this one, and that before it until it is let go
            assert tensor.device.type == "cpu"
            yield name, tensor

    monkeypatch.setattr(safetensors_files, "_tensors", watched)
    base = load_base(str(wide(tmp_path)), precision="bf16", quantize=quantize)
    assert len(met) > 15
    assert places(base.model.module) == {"meta"}
    held = [each for each in base.model.module.modules() if isinstance(each, Blocks)]
    assert bool(held) == bool(quantize)
    assert all(each.dtype == torch.bfloat16 for each in held)


@pytest.mark.parametrize(("kind", "task"), [("bert", "classify"), ("t5", None)])
def test_what_runs_through_transformers_is_quantised_before_it_goes_there(
    kind: str, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is not whole on a card that has no room for that."""
    where: list[set[str]] = []
    quantise = load.quantise_linears
    monkeypatch.setattr(
        load, "quantise_linears", lambda module, *of: where.append(places(module)) or quantise(module, *of)
    )
    base = load_base(str(save_tiny(tmp_path, kind)), precision="bf16", quantize="int8", task=task, classes=("a", "b"))
    assert where == [{"cpu"}]
    assert places(base.model.module) == {"meta"}


@pytest.mark.parametrize("quantize", [None, "nf4", "keep"])
def test_a_gguf_files_blocks_are_dequantised_there(quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model.gguf", "llama", "Q4_1")
    monkeypatch.setattr(gguf, "dequantize", lambda *_: pytest.fail("dequantised by the host"))
    base = load_base(str(tmp_path / "model.gguf"), precision="bf16", quantize=quantize)
    assert places(base.model.module) == {"meta"}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q8_0", "IQ4_NL"])
def test_tensors_are_those_of_the_gguf_package(kind: str, tmp_path: Path) -> None:
    number = gguf.GGMLQuantizationType[kind]
    values = torch.randn(3, 512, generator=torch.Generator().manual_seed(0)).numpy()
    if kind == "IQ4_NL":  # which the package reads and does not write
        raw = torch.randint(0, 256, (3, 16 * 18), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
        raw[:, 1::18] = 44  # scales that are numbers
    else:
        raw = gguf.quantize(values, number)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GGUF(tmp_path / "a.gguf").tensor("x")
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(gguf.dequantize(raw, number)))


def test_a_card_without_triton_is_told_so_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "afina.engine.ops.cards.by_triton", None)  # importing it fails
    monkeypatch.setattr(choice, "_by_triton", choice._by_triton.__wrapped__)
    assert choice.chosen(torch.device("cuda"), tmp_path) is TORCH
    words = load._engine(torch.device("cuda"), None, None)
    assert re.match(
        r"Afina's decoder on cuda by torch, for Triton cannot be imported \(.+\): slower, .+; install", words
    )
    for other in ("cpu", "mps"):
        assert "Triton" not in load._engine(torch.device(other), None, None)
