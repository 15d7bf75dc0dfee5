"""Bases, GGUF files and adapters in formats that are not read, or read slowly: named wherever they are opened."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, save_tiny, tiny_module
from gguf_files import write
from safetensors.torch import load_file, save_file

from afina.core.errors import AdapterError, BaseModelError
from afina.jobs.doctor import DoctorSettings, doctor
from afina.lora.peft_files import load_adapter
from afina.models.formats import number_formats as module
from afina.models.load import load_base, load_tokenizer
from afina.models.skeleton import read_skeleton
from afina.ui.cli import main


def changed(folder: Path, change, **config) -> Path:
    """The model in the folder with the tensors that `change` makes of its own, and more in its config.json."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return folder


def same(state: dict) -> dict:
    return state


def refused(path: Path) -> str:
    """What opening the base says, the same by every way."""
    said = set()
    for opened in (
        lambda: load_base(str(path)),
        lambda: load_tokenizer(str(path)),
        lambda: read_skeleton(str(path), cache_dir=path.parent),
    ):
        with pytest.raises(BaseModelError) as error:
            opened()
        said.add(str(error.value))
    (text,) = said
    return text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "awq"}, "AWQ"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "sinq"}, "'sinq'"),
        ({"bits": 3}, "'unknown'"),
    ],
)
def test_bases_of_other_quantisers_are_named_with_what_to_take(config: dict, said: str, tmp_path: Path) -> None:
    folder = changed(save_tiny(tmp_path / "base"), same, quantization_config=config)
    text = refused(folder)
    assert said in text
    assert "take the model that it was made of with --quantize nf4" in text
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model:\n- some-one/Tiny.Model\n---\nbase_model: x/y\n")
    assert "take some-one/Tiny.Model with --quantize nf4" in refused(folder)
    assert main(["doctor", str(folder)]) == 1


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_whole_numbers_and_scales_are_no_weights(kind: str, tmp_path: Path) -> None:
    """Without a word in config.json: nothing of it is learned from in silence."""

    def first(state: dict) -> str:
        return next(name for name in state if name.endswith(("q_proj.weight", "query.weight")))

    def whole(state: dict) -> dict:
        return state | {first(state): torch.ones_like(state[first(state)]).to(torch.int8)}

    def scaled(state: dict) -> dict:
        name = first(state)
        weight = {name: state[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}
        return state | weight

    for change, said in ((whole, r"1 tensor of whole numbers (I8)"), (scaled, "numbers of few bits (F8_E4M3)")):
        folder = changed(save_tiny(tmp_path / said[:6] / "base", kind), change)
        with pytest.raises(BaseModelError) as error:
            load_base(str(folder), task="classify" if kind == "bert" else None, classes=("a", "b"))
        assert said in str(error.value)


def test_positions_are_no_weights(tmp_path: Path) -> None:
    folder = changed(save_tiny(tmp_path / "base", "bert"), lambda s: s | {"embeddings.position_ids": torch.arange(512)})
    assert load_base(str(folder), task="classify", classes=("a", "b"), precision="fp32")


def test_eight_bits_without_scales_are_read_and_said(tmp_path: Path) -> None:
    plain = load_base(str(save_tiny(tmp_path / "plain")), precision="fp32")
    names = [name for name in plain.model.module.state_dict() if name.endswith("down_proj.weight")]

    def rounded(state: dict) -> dict:
        return state | {name: state[name].to(torch.float8_e5m2) for name in names}

    base = load_base(str(changed(save_tiny(tmp_path / "base"), rounded)), precision="fp32")
    assert "2 tensors of numbers of few bits (F8_E5M2)" in base.engine
    for name in names:
        read, stored = base.model.module.state_dict()[name], plain.model.module.state_dict()[name]
        assert torch.equal(read, stored.to(torch.float8_e5m2).float())
    assert "few bits" not in plain.engine


def adapter(target, base: Path, folder: Path, **settings) -> Path:
    """An adapter of the base in the folder, as other programs save one."""
    from afina.lora import LoraConfig, inject, save_adapter

    config = LoraConfig(rank=2, **settings)
    inject(target, config)
    save_adapter(target, config, folder, str(base))
    return folder


def in_fp8(state: dict, blocks: int) -> tuple[dict, dict]:
    """Square blocks of numbers of eight bits with a scale each, and what they stand for."""
    found, meant = dict(state), {}
    for name, weight in state.items():
        if name.endswith("proj.weight"):
            rows, columns = (max(1, n // blocks) for n in weight.shape)
            tiles = weight.float().reshape(rows, -1, columns, min(blocks, weight.shape[1]))
            scales = tiles.abs().amax((1, 3)) / 448
            tiles = (tiles / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            found |= {name: tiles.reshape(weight.shape), f"{name}_scale_inv": scales}
            meant[name] = (tiles.float() * scales[:, None, :, None]).reshape(weight.shape)
    return found, meant


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_fp8_with_scales_per_block_is_unpacked(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", kind)
    stored, meant = in_fp8(load_file(folder / "model.safetensors"), 16)
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    base = load_base(str(changed(folder, lambda _: stored, quantization_config=method)), precision="fp32")
    assert "Afina's decoder" in base.engine
    assert "FP8 with a scale per block" in base.engine
    twin = tiny_module(kind)
    twin.load_state_dict(twin.state_dict() | meant)
    state = base.model.module.state_dict()
    for name, value in twin.state_dict().items():
        if name in state:
            assert torch.equal(state[name], value), name
            assert state[name].dtype == torch.float32
    ids = torch.randint(3, 259, (1, 20), generator=torch.Generator().manual_seed(0))
    from afina.engine.ops import Segments

    module_ = base.model.module
    with torch.no_grad():
        ours = module_.logits(module_.normed(*module_(ids[0], Segments((0, 20)))))
        assert torch.allclose(ours, twin(ids).logits[0], atol=1e-4)
    run = adapter(module_, folder, tmp_path / "adapter")
    assert main(["adapters", "merge", str(run), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    small = load_base(str(folder), precision="fp32", quantize="nf4")
    assert "linear layers in nf4" in small.engine


def test_mxfp4_is_unpacked_through_transformers(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GptOssConfig(
        **sizes, vocab_size=259, num_key_value_heads=1, head_dim=16, num_local_experts=2, num_experts_per_tok=1,
        max_position_embeddings=4096, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path / "base"
    GptOssForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    codes = {}

    def packed(state: dict) -> dict:
        found = {}
        for name, value in state.items():
            if not name.endswith(("gate_up_proj", "down_proj")):
                found[name] = value
                continue
            experts, inputs, outputs = value.shape
            codes[name] = torch.randint(0, 16, (experts, outputs, inputs), dtype=torch.uint8)
            pairs = codes[name].reshape(experts, outputs, inputs // 32, 16, 2)
            found[f"{name}_blocks"] = pairs[..., 0] | pairs[..., 1] << 4
            found[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 126, dtype=torch.uint8)
        return found

    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    method = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    base = load_base(str(changed(folder, packed, quantization_config=method)), precision="fp32")
    assert "MXFP4" in base.engine
    assert base.fell_back
    run = adapter(base.model.module, folder, tmp_path / "adapter", target_modules=("q_proj",))
    assert main(["adapters", "merge", str(run), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    base = load_base(str(folder), precision="fp32")
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # of four bits (OCP MX)
    state = base.model.module.state_dict()
    for name, each in codes.items():
        assert torch.equal(state[name].float(), (numbers[each.long()] / 2).transpose(1, 2)), name


def write_types(path: Path, kinds: dict[str, int]) -> Path:
    """A GGUF file of a small Llama in Q4_0, some of whose tensors are said to be of other types."""
    write(path, "llama", "Q4_0")
    data = bytearray(path.read_bytes())
    for name, kind in kinds.items():
        at = data.index(name.encode()) + len(name)
        dims = int.from_bytes(data[at : at + 4], "little")
        data[at + 4 + 8 * dims : at + 8 + 8 * dims] = kind.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    ("kind", "said"), [(31, "Q4_0_4_4 (which llama.cpp has given up)"), (4, "Q4_2"), (24, "I8"), (250, "type 250")]
)
def test_types_of_gguf_that_are_not_read(kind: int, said: str, tmp_path: Path) -> None:
    path = write_types(tmp_path / "m.gguf", {"blk.0.attn_q.weight": kind, "blk.1.attn_q.weight": kind})
    text = refused(path)
    assert f"2 tensors in {said}" in text
    assert "Q4_K_M" in text
    (finding,) = doctor(DoctorSettings(run=path)).findings
    assert (finding.state, said in finding.found) == ("wrong", True)


def test_types_of_gguf_that_are_unpacked_slowly(tmp_path: Path) -> None:
    """IQ4_NL has blocks of as many numbers and bytes as Q4_0."""
    path = write_types(tmp_path / "m.gguf", {"blk.0.ffn_down.weight": 20})
    base = load_base(str(path), precision="fp32")
    assert "1 tensor in IQ4_NL" in base.engine
    (finding,) = doctor(DoctorSettings(run=path)).findings
    assert finding.state == "warning"
    plain = write_types(tmp_path / "plain.gguf", {})
    assert "unpacked" not in load_base(str(plain), precision="fp32").engine
    assert [each.state for each in doctor(DoctorSettings(run=plain)).findings] == ["ok"]


def test_all_types_of_the_package_are_told_apart() -> None:
    """What is read is what the package unpacks; nothing else is thought to be readable."""
    for kind in gguf.GGMLQuantizationType:
        size = gguf.GGML_QUANT_SIZES[kind][1]
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
            reads = True
        except NotImplementedError:
            reads = False
        assert module._is_unpacked(int(kind)) == reads, kind


def test_an_adapter_of_whole_numbers_is_refused_and_one_of_few_bits_read(tiny_folder: Path, tmp_path: Path) -> None:
    from afina.lora import LoraConfig, inject, save_adapter

    target = load_base(str(tiny_folder), precision="fp32").model.module
    config = LoraConfig(rank=2)
    inject(target, config)
    folder = tmp_path / "adapter"
    save_adapter(target, config, folder, "base")
    file = folder / "adapter_model.safetensors"
    good = load_file(file)
    fresh = load_base(str(tiny_folder), precision="fp32").model.module
    save_file({name: (100 * value).to(torch.int8) for name, value in good.items()}, file)
    with pytest.raises(AdapterError, match=r"\(int8\) holds whole numbers"):
        load_adapter(fresh, folder)
    save_file({name: (value + 0.5).to(torch.float8_e4m3fn) for name, value in good.items()}, file)
    load_adapter(fresh, folder)
    from afina.lora import adapter_state

    assert all(torch.allclose(value, good[name] + 0.5, rtol=0.07) for name, value in adapter_state(fresh).items())
