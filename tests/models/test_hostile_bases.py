"""Bases from anywhere: their configuration, tokenizer, template and weights end in a model or in one message."""

import json
import shutil
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny
from safetensors.torch import load_file, save_file

from afina.core.errors import BaseModelError, InputError
from afina.models import tokenizer as tokenizers
from afina.models.formats.checks import check_counts
from afina.models.load import load_base
from afina.models.reading import chat_tokenizer
from afina.models.skeleton import config_of
from afina.models.sources.source import Source
from afina.models.templates import read_template
from afina.models.tokenizer import wrap

SECONDS, MB = 0.5, 1 << 20


@pytest.fixture
def base(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "base")


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers.rendering, "__defaults__", (SECONDS,))
    monkeypatch.setattr(tokenizers, "RENDER_BYTES", 128 * MB)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


LOOP = "{% for a in range(99999) %}" * 3 + "X" + "{% endfor %}" * 3
TEMPLATES = {
    "loop": LOOP.replace("X", ""),
    "output": LOOP.replace("X", "text " * 20),
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "adding": "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "lists as JSON": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x | tojson }}",
    "times": "{{ 'a' * 10 ** 11 }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "wide": "{{ '%99999999999d' | format(1) }}",
    "centred": "{{ 'a' | center(10 ** 11) }}",
    "filled": "{{ '{:>99999999999}'.format(1) }}",
    "words": "{{ lipsum(n=10 ** 9) }}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "two recursions": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "sorted": "{% for a in range(9999) %}{% if range(99999) | list | sort | unique | list %}{% endif %}{% endfor %}",
}
FAULTS = {
    "types": "{{ 1 + 'a' }}", "zero": "{{ 1 // 0 }}", "none": "{{ none.a.b }}", "missing": "{{ nothing.a }}",
    "index": "{{ messages[99].role }}", "syntax": "{% for %}", "own": "{{ raise_exception('no') }}",
    "private": "{{ ''.__class__.__mro__ }}", "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "filter": "{{ 1 | nothing }}", "import": "{% import 'x' as y %}", "overflow": "{{ 'a' * 10 ** 30 }}",
}  # fmt: skip


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_takes_too_much_is_refused(name: str) -> None:
    begun = time.monotonic()
    with pytest.raises(BaseModelError, match="the chat template") as error:
        wrap(byte_tokenizer(TEMPLATES[name] + CHATML), [])
    assert len(error.value.problems) == 1
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("name", FAULTS)
def test_a_template_that_fails_is_refused(name: str) -> None:
    with pytest.raises(BaseModelError, match="the chat template cannot render a question and an answer") as error:
        wrap(byte_tokenizer(FAULTS[name] + CHATML), [])
    assert len(str(error.value)) < 600


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("name", ["loop", "doubling", "lists"])
def test_a_template_that_begins_to_misbehave_with_the_rows_is_refused(name: str) -> None:
    tok = wrap(byte_tokenizer(f"{{% if messages | length > 2 %}}{TEMPLATES[name]}{{% endif %}}{CHATML}"), [])
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tok.chat(turns, False)
    with pytest.raises(BaseModelError, match="the chat template"):
        tok.chat(turns * 2, False)


def test_long_conversations_are_rendered_whole() -> None:
    tok, content = wrap(byte_tokenizer(), []), "ab " * MB
    assert tok.chat([{"role": "user", "content": content}], True).count("ab ") == MB
    greedy = wrap(byte_tokenizer("{% for m in messages %}{{ m['content'] * 9 if m['content'] | length > 99 "
                                 "else m['content'] }}{% endfor %}"), [])  # fmt: skip
    with pytest.raises(BaseModelError, match="characters of one conversation"):
        greedy.chat([{"role": "user", "content": content}], True)


def test_a_template_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="more than 1,048,576 characters"):
        wrap(byte_tokenizer("a" * (MB + 1)), [])
    (tmp_path / "t.jinja").write_bytes(b"a" * (5 * MB))
    with pytest.raises(InputError, match="has 5 MB, and 4 are the most"):
        read_template(tmp_path / "t.jinja")


@pytest.mark.parametrize("name", ["m_jinja_double", "m_jinja_loop", "m_jinja_typeerror"])
def test_templates_of_the_cases(name: str, hostile: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(BaseModelError, match="the chat template"):
        wrap(byte_tokenizer((hostile / name / "chat_template.jinja").read_text()), [])
    assert time.monotonic() - begun < 6


@pytest.mark.parametrize(
    "change_of",
    [
        lambda t: b"", lambda t: b"[]", lambda t: b"{}", lambda t: t[: len(t) // 2], lambda t: b"\xff" + t,
        lambda t: t.replace(b'"BPE"', b'"XYZ"'), lambda t: t.replace(b'"vocab"', b'"bocab"'),
        lambda t: t.replace(b'"ByteLevel"', b'"Nothing"'), lambda t: b"[" * 90_000,
        lambda t: t.replace(b'"id":2', b'"id":-2').replace(b'"id": 2', b'"id": -2'),
        lambda t: t.replace(b'"merges": []', b'"merges": [["a", "no such"]]'),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_damaged(change_of: Any, base: Path) -> None:
    path = base / "tokenizer.json"
    path.write_bytes(change_of(path.read_bytes()))
    with pytest.raises(BaseModelError, match="tokenizer"):
        chat_tokenizer(Source("base", "folder", base))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", b"["), ("generation_config.json", b'{"eos_token_id": "x"}'),
        ("generation_config.json", b'{"eos_token_id": [[]]}'), ("generation_config.json", b"[]"),
        ("tokenizer_config.json", b"{"), ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b'{"tokenizer_class": 5}'), ("tokenizer_config.json", b'{"eos_token": {"a": 1}}'),
        ("special_tokens_map.json", b'{"eos_token": 9}'), ("chat_template.jinja", b"\xff\xfe{{"),
    ],
)  # fmt: skip
def test_files_beside_a_tokenizer(name: str, content: bytes, base: Path) -> None:
    (base / name).write_bytes(content)
    with suppress(InputError):
        chat_tokenizer(Source("base", "folder", base))


def test_a_tokenizer_too_large_is_not_read(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "TOKENIZER_BYTES", 1000)
    with pytest.raises(BaseModelError, match=r"tokenizer\.json has"):
        chat_tokenizer(Source("base", "folder", base))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 100_000), ("num_hidden_layers", 10**12), ("num_hidden_layers", 0), ("n_layer", 5_000),
        ("num_local_experts", 10**7), ("num_labels", 10**9), ("encoder_layers", 10**6),
        ("text_config", {"num_hidden_layers": 100_000}), ("text_config", {"a": {"n_layers": 10**9}}),
        ("num_key_value_heads", 3), ("_attn_implementation", "someone/kernel"), ("num_hidden_layers", 1e300),
    ],
)  # fmt: skip
def test_numbers_that_would_be_counted_up_to_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|share|code from elsewhere"):
        check_counts({"num_attention_heads": 4, name: value})


def test_numbers_in_use_are_not_refused() -> None:
    check_counts({"num_hidden_layers": 126, "n_routed_experts": 256, "num_labels": 1000, "max_window_layers": 70})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b'{"model_type": "llama"', b'{"model_type": 5}', b'{"model_type": "nothing"}', b"{}",
        b"\xff", b'{"model_type": "llama", "hidden_size": "x"}', b'{"model_type": "llama", "rope_parameters": 3}',
        b'{"model_type": "llama", "layer_types": 3}', b'{"model_type": "llama", "num_hidden_layers": 100000}',
        b'{"model_type": "t5", "num_layers": 100000}', b'{"model_type":' * 3000,
    ],
)  # fmt: skip
def test_a_configuration_that_is_none(content: bytes, base: Path) -> None:
    (base / "config.json").write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(InputError) as error:
        load_base(str(base), precision="fp32", device="cpu")
    assert len(str(error.value)) < 800
    assert time.monotonic() - begun < 9


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_a_configuration_far_larger_than_its_weights_fills_no_memory(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / kind, kind)
    change(folder / "config.json", vocab_size=50_000_000)
    with pytest.raises(BaseModelError, match=r"config\.json describes a model of"):
        load_base(str(folder), precision="fp32", device="cpu", classes=("a", "b"))


@pytest.mark.parametrize(
    "change_of",
    [
        lambda b: b"", lambda b: b[:8], lambda b: b[: len(b) // 2], lambda b: b"\xff" * 8 + b[8:],
        lambda b: b.replace(b'"F32"', b'"F31"', 1), lambda b: b.replace(b'"F32"', b'"C64"', 1),
        lambda b: b.replace(b'"shape":[', b'"shape":[9', 1), lambda b: struct.pack("<Q", 1 << 50) + b[8:],
        lambda b: b.replace(b"data_offsets", b"data_offsett", 1),
    ],
)  # fmt: skip
def test_weights_that_are_damaged(change_of: Any, base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(change_of(path.read_bytes()))
    with pytest.raises(BaseModelError) as error:
        load_base(str(base), precision="fp32", device="cpu")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "index", [b"[]", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b'{"weight_map": {"a": "../x"}}', b"{"]
)
def test_an_index_that_is_damaged(index: bytes, base: Path) -> None:
    (base / "model.safetensors").rename(base / "model-1.safetensors")
    (base / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(BaseModelError):
        load_base(str(base), precision="fp32", device="cpu")


def test_tensors_of_other_shapes_are_named(base: Path) -> None:
    state = load_file(base / "model.safetensors")
    name = next(name for name in state if "q_proj" in name)
    for odd in (torch.zeros(0), torch.zeros(1, 1, 1), torch.zeros(3, dtype=torch.int64)):
        save_file(state | {name: odd}, base / "model.safetensors", {"format": "pt"})
        with pytest.raises(BaseModelError):
            load_base(str(base), precision="fp32", device="cpu")


def test_a_models_own_settings_still_load(base: Path) -> None:
    assert config_of(Source("base", "folder", base)).num_hidden_layers == 2
    assert load_base(str(base), precision="fp32", device="cpu").facts.layers == 2
