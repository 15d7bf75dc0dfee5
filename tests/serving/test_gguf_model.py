"""GGUF files of merged models: of every family, tensor for tensor as an independent writer makes them, and read back as
the same model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, save_tiny
from gguf_files import FAMILIES, write
from transformers import AutoModelForCausalLM, MistralConfig

from afina.core.errors import BaseModelError, SettingsError
from afina.engine.ops import Segments
from afina.models import load_base
from afina.models.formats.gguf import GGUF
from afina.models.load import Base
from afina.models.model import unshared
from afina.serving.gguf import GgufFacts, plan_model, write_model

FACTS = GgufFacts("tiny", "apache-2.0", "Base 1", "Somebody", "https://example.org/base", description="for a test")
IDS = torch.arange(3, 60)


def saved(folder: Path, config) -> Base:
    """A random model in transformers' format, as a base."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return load_base(str(folder), precision="fp32", device="cpu")


def logits(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return base.model.label_logits(unshared(IDS, IDS, Segments((0, len(IDS)))))


def written(base: Base, path: Path, type: str, facts: GgufFacts = FACTS) -> Base:
    write_model(base, base.model.module.state_dict().items(), path, type, facts)
    return load_base(str(path), precision="fp32", device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_written_as_the_converter_does_and_read_back(family: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", FAMILIES[family])
    read = written(base, tmp_path / "model.gguf", "F32")
    write(tmp_path / "other.gguf", family)
    own, other = GGUF(tmp_path / "model.gguf"), GGUF(tmp_path / "other.gguf")
    for name, info in other.tensors.items():
        assert own.tensors[name].shape == info.shape
        assert torch.allclose(own.tensor(name), other.tensor(name), rtol=1e-6, atol=1e-7), name
    keys = {key for key in other.metadata if key.startswith(f"{own.metadata['general.architecture']}.")}
    differing = {key for key in keys if own.metadata.get(key) != pytest.approx(other.metadata[key])}
    assert {key.partition(".")[2] for key in differing} <= {"context_length"}  # the other writer has one for all
    expected = logits(base)
    assert (logits(read) - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gptneox"])
@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q5_0"])
def test_the_types_differ_by_their_rounding_alone(family: str, type: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", FAMILIES[family])
    read = written(base, tmp_path / "model.gguf", type)
    bits = {"F16": 1e-3, "BF16": 8e-3, "Q8_0": 8e-3, "Q6_K": 3e-2, "Q5_0": 8e-2, "Q4_K_M": 0.12}
    weights = dict(base.model.module.named_parameters())
    for name, found in read.model.module.named_parameters():
        exact = weights[name].detach()
        if exact.dim() == 2:
            assert (found - exact).norm() / exact.norm() < bits[type], name
        else:
            assert torch.allclose(found, exact, atol=1e-6), name


def test_what_is_said_of_the_model(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", FAMILIES["llama"])
    plan = write_model(base, base.model.module.state_dict().items(), tmp_path / "a.gguf", "Q4_K_M", FACTS)
    assert plan == plan_model(base, "Q4_K_M")
    said = GGUF(tmp_path / "a.gguf").metadata
    assert said["general.name"] == "tiny"
    assert said["general.license"] == "apache-2.0"
    assert said["general.base_model.0.name"] == "Base 1"
    assert said["general.base_model.0.organization"] == "Somebody"
    assert said["general.base_model.0.repo_url"] == "https://example.org/base"
    assert (said["general.file_type"], said["general.quantization_version"]) == (15, 2)
    assert said["general.type"] == "model"
    assert said["general.description"] == "for a test"
    assert said["tokenizer.chat_template"] == base.tokenizer.inner.chat_template
    assert said["tokenizer.ggml.eos_token_id"] == 2
    assert said["tokenizer.ggml.model"] == "gpt2"
    assert len(said["tokenizer.ggml.tokens"]) == 320
    assert said["tokenizer.ggml.token_type"][-1] == 5
    assert str(tmp_path) not in str(said)


@pytest.mark.parametrize("rope", [
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 16,
     "attention_factor": 1.5, "beta_fast": 20.0, "beta_slow": 2.0},
    {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + i / 20 for i in range(16)],
     "long_factor": [1.0 + i for i in range(16)], "original_max_position_embeddings": 40},
])  # fmt: skip
def test_scaled_rotations_are_written_and_read(rope: dict, tmp_path: Path) -> None:
    config = FAMILIES["llama"].__class__(**FAMILIES["llama"].to_dict() | {"rope_parameters": rope})
    base = saved(tmp_path / "base", config)
    read = written(base, tmp_path / "model.gguf", "F32")
    assert "Afina's decoder" in read.engine
    expected = logits(base)
    assert (logits(read) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_partial_rotations_and_a_base_that_is_a_file_itself(tmp_path: Path) -> None:
    """The tokenizer is copied, with the kinds of its values, and the second file says what the first does."""
    config = FAMILIES["phi3"].__class__(**FAMILIES["phi3"].to_dict())
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    base = saved(tmp_path / "base", config)
    first = written(base, tmp_path / "first.gguf", "F32")
    second = written(first, tmp_path / "second.gguf", "F32")
    assert torch.equal(logits(first), logits(second))
    one, two = GGUF(tmp_path / "first.gguf"), GGUF(tmp_path / "second.gguf")
    assert one.metadata == two.metadata
    assert one.kinds == two.kinds
    assert (logits(first) - logits(base)).abs().max() < 1e-5


def test_a_head_that_is_the_embeddings_is_written_twice_where_llama_cpp_needs_it(tmp_path: Path) -> None:
    config = FAMILIES["olmo2"].__class__(**FAMILIES["olmo2"].to_dict() | {"tie_word_embeddings": True})
    base = saved(tmp_path / "base", config)
    read = written(base, tmp_path / "model.gguf", "F32")
    file = GGUF(tmp_path / "model.gguf")
    assert torch.equal(file.tensor("output.weight"), file.tensor("token_embd.weight"))
    assert (logits(read) - logits(base)).abs().max() < 1e-5


def test_what_gguf_has_no_word_for_is_named(tmp_path: Path) -> None:
    windowed = MistralConfig(**{**FAMILIES["llama"].to_dict(), "sliding_window": 16, "model_type": "mistral"})
    base = saved(tmp_path / "windowed", windowed)
    with pytest.raises(BaseModelError, match=r"cannot say of the model: specs: layer 0: window 16; the file.*say 0"):
        written(base, tmp_path / "model.gguf", "F16")
    assert not list(tmp_path.glob("*.gguf*"))
    scaled = FAMILIES["gemma2"].__class__(**FAMILIES["gemma2"].to_dict() | {"query_pre_attn_scalar": 50})
    base = saved(tmp_path / "scaled", scaled)
    with pytest.raises(BaseModelError, match=r"specs: layer 0: scale 0.1414\d+; the file would say 0.1767"):
        written(base, tmp_path / "model.gguf", "F16")


def test_a_mistral_without_a_window_is_a_llama(tmp_path: Path) -> None:
    config = MistralConfig(**{**FAMILIES["llama"].to_dict(), "sliding_window": None, "model_type": "mistral"})
    base = saved(tmp_path / "base", config)
    read = written(base, tmp_path / "model.gguf", "F32")
    assert read.facts.architecture == "llama"
    assert (logits(read) - logits(base)).abs().max() < 1e-5


def test_other_models_are_refused_with_the_list_of_known(tmp_path: Path) -> None:
    save_tiny(tmp_path / "t5", "t5")
    with pytest.raises(BaseModelError, match=r"model of type 't5', only of gemma2, gemma3_text, gpt2, gpt_neox, llama"):
        plan_model(load_base(str(tmp_path / "t5"), precision="fp32", device="cpu"), "F16")


def test_numbers_that_a_type_cannot_hold_are_refused(tiny: Base, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in tiny.model.module.state_dict().items()}
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e5
    with pytest.raises(SettingsError, match=r"F16 holds numbers up to 65504, and blk.1.ffn_up.weight has 100000"):
        write_model(tiny, state.items(), tmp_path / "a.gguf", "F16", FACTS)
    assert write_model(tiny, state.items(), tmp_path / "a.gguf", "BF16", FACTS).type == "BF16"
    state["model.norm.weight"][0] = np.nan
    with pytest.raises(SettingsError, match=r"output_norm.weight holds numbers that are not finite"):
        write_model(tiny, state.items(), tmp_path / "b.gguf", "F32", FACTS)
    assert not (tmp_path / "b.gguf").exists()
    assert (tmp_path / "a.gguf").exists()


def test_weights_must_be_those_of_the_base(tiny: Base, tmp_path: Path) -> None:
    state = dict(tiny.model.module.state_dict())
    head = {**state, "lm_head.weight": state["lm_head.weight"] + 1}
    with pytest.raises(ValueError, match=r"lm_head.weight is not model.embed_tokens.weight"):
        write_model(tiny, head.items(), tmp_path / "a.gguf", "F16", FACTS)
    del state["model.norm.weight"]
    with pytest.raises(ValueError, match=r"not written: output_norm.weight"):
        write_model(tiny, state.items(), tmp_path / "a.gguf", "F16", FACTS)
    assert not list(tmp_path.glob("*"))


def test_the_weights_may_come_in_any_order_and_dtype(tiny: Base, tmp_path: Path) -> None:
    state = {name: value.to(torch.bfloat16) for name, value in tiny.model.module.state_dict().items()}
    write_model(tiny, state.items(), tmp_path / "a.gguf", "Q8_0", FACTS)
    write_model(tiny, reversed(list(state.items())), tmp_path / "b.gguf", "Q8_0", FACTS)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
