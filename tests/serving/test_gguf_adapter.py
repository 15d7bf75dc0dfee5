"""GGUF adapters against PEFT's merged weights, and what is refused by name."""

from pathlib import Path

import peft
import pytest
import torch
from conftest import byte_tokenizer
from gguf_files import FAMILIES
from transformers import AutoModelForCausalLM

from afina.core.errors import AdapterError
from afina.models import load_base
from afina.models.formats.gguf import GGUF
from afina.serving.gguf import GgufFacts, read_adapter, write_adapter, write_model

FACTS = GgufFacts("tiny adapter", base_name="Base 1")
PATTERNS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 9, "lora_alpha": 6, "use_rslora": True},
    "ranks": {"r": 4, "lora_alpha": 8, "rank_pattern": {"0.*": 2}},
    "alphas": {"r": 4, "lora_alpha": 8, "alpha_pattern": {"1.*": 24}},
    "all": {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"0.*": 7}, "alpha_pattern": {"1.*": 3}},
}
TARGETS = {"gptneox": ["query_key_value", "dense"], "gpt2": ["c_attn", "c_fc", "c_proj"]}


def adapted(folder: Path, family: str, **settings):
    """A random base and a random adapter in PEFT's format: the base, the adapter's folder, and PEFT's model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    model.save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    settings = {"target_modules": TARGETS.get(family, "all-linear"), "task_type": "CAUSAL_LM"} | settings
    found = peft.get_peft_model(model, peft.LoraConfig(**settings))
    for name, p in found.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            p.data = torch.randn_like(p) * 0.1
    found.save_pretrained(folder / "adapter")
    return load_base(str(folder / "base"), precision="fp32", device="cpu"), folder / "adapter", found


def check(tmp_path: Path, family: str, **settings) -> GGUF:
    """The file beside the base's gives the merged weights of PEFT, read by its layers, and as they lie in the files."""
    base, folder, model = adapted(tmp_path, family, **settings)
    write_adapter(base, folder, tmp_path / "lora.gguf", FACTS, "F32")
    before = {name: value.clone() for name, value in base.model.module.state_dict().items()}
    write_model(base, before.items(), tmp_path / "base.gguf", "F32", FACTS)
    merged = model.merge_and_unload().state_dict()
    updates = read_adapter(tmp_path / "lora.gguf", base)
    for path, (a, b) in updates.items():
        delta = b @ a
        delta = delta.T if FAMILIES[family].model_type == "gpt2" else delta
        assert torch.allclose(before[f"{path}.weight"] + delta, merged[f"{path}.weight"], atol=1e-6), path
    renamed = {"embed_out.weight": "lm_head.weight"}
    write_model(base, ((renamed.get(n, n), v) for n, v in merged.items()), tmp_path / "merged.gguf", "F32", FACTS)
    lora, old, new = (GGUF(tmp_path / f"{name}.gguf") for name in ("lora", "base", "merged"))
    names = {name.rpartition(".")[0] for name in lora.tensors}
    assert len(names) == len(updates) >= 4
    for name in new.tensors:
        expected = old.tensor(name)
        if name in names:
            a, b = lora.tensor(f"{name}.lora_a"), lora.tensor(f"{name}.lora_b")
            expected = expected + lora.metadata["adapter.lora.alpha"] / len(a) * b @ a
        assert torch.allclose(new.tensor(name), expected, atol=1e-6), name
    return lora


@pytest.mark.parametrize("form", PATTERNS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_file_scales_as_the_adapter_was_trained(family: str, form: str, tmp_path: Path) -> None:
    lora = check(tmp_path, family, **PATTERNS[form])
    assert lora.metadata["general.type"] == "adapter"
    assert lora.metadata["adapter.type"] == "lora"
    assert lora.metadata["general.architecture"] == family
    if form == "rslora":
        assert lora.metadata["adapter.lora.alpha"] == pytest.approx(6 * 9**0.5)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("llama", "gpt2", "llama 3")])
def test_every_family(family: str, tmp_path: Path) -> None:
    check(tmp_path, family, **PATTERNS["all"])


def test_halves_are_near(tmp_path: Path) -> None:
    base, folder, _ = adapted(tmp_path, "qwen3", **PATTERNS["all"])
    write_adapter(base, folder, tmp_path / "exact.gguf", FACTS, "F32")
    write_adapter(base, folder, tmp_path / "half.gguf", FACTS)
    exact, half = (read_adapter(tmp_path / f"{name}.gguf", base) for name in ("exact", "half"))
    for path, (a, b) in exact.items():
        assert torch.allclose(half[path][0], a, rtol=1e-3, atol=1e-7)
        assert torch.allclose(half[path][1], b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("settings", "words"), [
    ({"target_modules": ["q_proj", "lm_head"]}, r"lm_head is adapted, and llama.cpp adds to no embedding"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, r"embed_tokens holds more than A and B of a layer"),
    ({"modules_to_save": ["norm"]}, r"norm holds more than A and B of a layer"),
    ({"use_dora": True}, r"of the form dora, of which llama.cpp knows nothing"),
    ({"trainable_token_indices": [3, 4]}, r"model.embed_tokens holds more than A and B of a layer"),
])  # fmt: skip
def test_what_llama_cpp_does_not_add_is_refused_by_name(settings: dict, words: str, tmp_path: Path) -> None:
    base, folder, _ = adapted(tmp_path, "qwen3", r=4, **settings)
    with pytest.raises(AdapterError, match=words) as raised:
        write_adapter(base, folder, tmp_path / "lora.gguf", FACTS)
    assert "export the merged model instead" in str(raised.value)
    assert not (tmp_path / "lora.gguf").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, _, _ = adapted(tmp_path / "one", "qwen3", r=4)
    _, folder, _ = adapted(tmp_path / "two", "gpt2", r=4)
    with pytest.raises(AdapterError, match=r"transformer.h.0.attn.c_attn is no layer of this base"):
        write_adapter(base, folder, tmp_path / "lora.gguf", FACTS)
    other, folder, _ = adapted(tmp_path / "three", "gemma2", r=4)
    write_adapter(other, folder, tmp_path / "lora.gguf", FACTS)
    write_model(base, base.model.module.state_dict().items(), tmp_path / "model.gguf", "F16", FACTS)
    with pytest.raises(AdapterError, match="is no LoRA adapter"):
        read_adapter(tmp_path / "model.gguf", base)


def test_vera_is_refused(tmp_path: Path) -> None:
    base, _, _ = adapted(tmp_path / "one", "qwen3", r=4)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one" / "base")
    peft.get_peft_model(model, peft.VeraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "vera")
    with pytest.raises(AdapterError, match="of the form vera"):
        write_adapter(base, tmp_path / "vera", tmp_path / "lora.gguf", FACTS)
