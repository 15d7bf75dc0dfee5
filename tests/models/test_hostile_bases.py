"""Bases from anywhere: their configuration, tokenizer, template and weights end in a model or in one message."""

import json
import os
import resource
import shutil
import struct
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny
from gguf_files import write as write_gguf
from safetensors.torch import load_file, save_file

from afina.core.errors import BaseModelError, InputError
from afina.models import tokenizer as tokenizers
from afina.models.formats import gguf_models, number_formats
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
    monkeypatch.setattr(tokenizers, "RENDER_SECONDS", SECONDS)
    monkeypatch.setattr(tokenizers, "RENDER_BYTES", 128 * MB)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DOUBLED = (
    "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}"
)
LOOP = "{% for a in range(99999) %}" * 3 + "X" + "{% endfor %}" * 3
TEMPLATES = {
    "loop": LOOP.replace("X", ""),
    "output": LOOP.replace("X", "text " * 20),
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "adding": "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "lists as JSON": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x | tojson }}",
    "comparing": DOUBLED + "{% if n.x == n.y %}x{% endif %}",  # in code that no signal and no thread interrupts
    "looking for": DOUBLED + "{% if n.x in [n.y] %}x{% endif %}",
    "unequal": DOUBLED + "{{ [n.x, n.y] | unique | list | length }}",
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
    assert time.monotonic() - begun < 20  # of a busy machine


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
    with pytest.raises(InputError, match="more than 4 MB, the most that is read"):
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


def split_at(pattern: str) -> dict[str, Any]:
    one = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    rest = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [one, rest]}}


def replaced(count: int, pattern: dict[str, str], content: str) -> dict[str, Any]:
    one = {"type": "Replace", "pattern": pattern, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [one] * count}}


ADDED = {"id": 300, "content": "a" * 50, "single_word": False, "lstrip": False, "rstrip": False, "special": False}
ENDLESS = {
    "nested repeats": split_at("(a+)+$"), "words": split_at("([a-z ]+)+!"), "one of several": split_at(r"(\w|\d|a)*!"),
    "growing": replaced(40, {"String": "a"}, "a" * 10), "growing slowly": replaced(9, {"String": "a"}, "a" * 10),
    "growing from nothing": replaced(40, {"Regex": ""}, "aa"),
    "growing names": replaced(40, {"String": "a"}, "a" * 10) | {"added_tokens": [ADDED | {"normalized": True}]},
    "a table that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAA=="}},
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_tokenizer_that_never_ends_is_refused(
    name: str, base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor does what Rust prints when it gives up reach anybody."""
    monkeypatch.setattr(tokenizers, "TOKENIZER_SECONDS", 1.0)
    monkeypatch.setattr(tokenizers, "TOKENIZER_MEMORY", 256 * MB)
    path = base / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ENDLESS[name]))
    begun = time.monotonic()
    with pytest.raises(BaseModelError, match=r"tokenizer\.json (takes more than|cannot read) .*page") as error:
        chat_tokenizer(Source("base", "folder", base))
    assert len(str(error.value)) < 600
    assert time.monotonic() - begun < 30
    assert "panicked" not in capfd.readouterr().err


def test_a_tokenizer_of_too_many_added_tokens_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "ADDED_TOKENS", 2)
    with pytest.raises(BaseModelError, match="it adds 3 tokens, 2 are read"):
        chat_tokenizer(Source("base", "folder", base))
    monkeypatch.setattr(tokenizers, "ADDED_TOKENS", 3)
    assert chat_tokenizer(Source("base", "folder", base))


def test_what_a_tokenizer_pads_or_cuts_does_not_count(base: Path) -> None:
    path = base / "tokenizer.json"
    pad = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    more = {"padding": pad | {"pad_type_id": 0, "pad_token": "<|endoftext|>"}, "truncation": cut}
    expected = chat_tokenizer(Source("base", "folder", base)).encode("a text")
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    tok = chat_tokenizer(Source("base", "folder", base))
    assert tok.encode("a text") == expected
    assert len(tok.encode_input("a text")) == len(expected)


def test_patterns_in_use_are_read(base: Path) -> None:
    """GPT-2's and Llama 3's ways to cut a text into words."""
    path = base / "tokenizer.json"
    for pattern in (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+",
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | split_at(pattern)))
        assert len(chat_tokenizer(Source("base", "folder", base)).encode("it's 1234 words")) == 15


@pytest.mark.parametrize("value", ["x", -5, 0, None, [1], 1e-320, float("nan"), 10**30, 7])
def test_any_longest_row_of_a_tokenizer(value: Any, base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change(base / "tokenizer_config.json", model_max_length=value)
    tok = chat_tokenizer(Source("base", "folder", base))
    assert tok.encode_input("ab") == tok.encode("ab")
    tok.inner.encode("ab")
    assert "longer than" not in capfd.readouterr().err


def test_a_text_that_a_tokenizer_gives_up_on_is_one_message(base: Path) -> None:
    path = base / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | split_at("(z+)+$")))
    tok = chat_tokenizer(Source("base", "folder", base))
    for encode in (tok.encode, tok.ends, tok.encode_input, lambda text: tok.encode_all([text])):
        with pytest.raises(BaseModelError, match="cannot read a text"):
            encode("z" * 200 + "b")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", b"["), ("generation_config.json", b'{"eos_token_id": "x"}'),
        ("generation_config.json", b'{"eos_token_id": [[]]}'), ("generation_config.json", b"[]"),
        ("tokenizer_config.json", b"{"), ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b'{"tokenizer_class": 5}'), ("tokenizer_config.json", b'{"eos_token": {"a": 1}}'),
        ("tokenizer_config.json", b'{"eos_token": ""}'), ("tokenizer_config.json", b'{"eos_token": "</nowhere>"}'),
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
        ("num_local_experts", 10**7), ("state_size", 10**9), ("d_ff", 10**7), ("num_decoder_layers", 900),
        ("eos_token_id", [1] * 100_001), ("rope_parameters", {"a": [1.0] * 100_001}),
        ("id2label", dict.fromkeys(map(str, range(100_001)), "x")), ("num_labels", 10**9), ("encoder_layers", 10**6),
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


def test_a_file_of_too_many_tensors_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(load_file(base / "model.safetensors"))
    monkeypatch.setattr(number_formats, "TENSORS", count - 1)
    with pytest.raises(BaseModelError, match=f"has {count} tensors, {count - 1} are read"):
        load_base(str(base), precision="fp32", device="cpu")


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json", "chat_template.jinja", "a.json"],
)
def test_a_pipe_or_a_device_is_not_waited_for(name: str, base: Path) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (base / name).unlink(missing_ok=True)
        make(base / name)
        with pytest.raises(BaseModelError, match=r"is not a regular file|no config\.json"):
            load_base(str(base), precision="fp32", device="cpu")
        with pytest.raises(BaseModelError, match="is not a regular file"):  # as `doctor` looks at it
            number_formats.number_formats(base)


def test_every_token_ends_an_answer(base: Path) -> None:
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(300))}))
    with pytest.raises(BaseModelError, match="every token of the vocabulary ends an answer"):
        chat_tokenizer(Source("base", "folder", base))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [*range(2, 259), -9, 10**12]}))
    assert chat_tokenizer(Source("base", "folder", base)).pad_id in (0, 1)


@pytest.mark.parametrize("width", [(1 << 31) - 2, 1 << 31, 0, 66])
def test_rotary_widths_of_a_gguf_file_are_checked_before_they_are_filled(width: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", "llama")
    content, name = (tmp_path / "a.gguf").read_bytes(), b"llama.rope.dimension_count"
    at = content.index(name) + len(name) + 4
    (tmp_path / "a.gguf").write_bytes(content[:at] + struct.pack("<I", width) + content[at + 4 :])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BaseModelError, match="rotary"):
        load_base(str(tmp_path / "a.gguf"), precision="fp32", device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10


def test_a_gguf_file_of_many_words_is_read() -> None:
    words = [f"w{i}" for i in range(300_000)]
    file = SimpleNamespace(path=Path("a"), metadata={"tokenizer.ggml.tokens": words, "general.architecture": "x"})
    assert gguf_models.read_config(file) is None  # of no family
    file.metadata["x.layers.list"] = words
    with pytest.raises(BaseModelError, match="has 300,000 items"):
        gguf_models.read_config(file)


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
