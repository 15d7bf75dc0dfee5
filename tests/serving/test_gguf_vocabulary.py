"""Tokenizers in GGUF files: made of a folder's, read back with the same ids, and refused where they cannot be."""

import itertools
import json
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_module
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from afina.core.errors import BaseModelError
from afina.models import load_base
from afina.models.formats.gguf import GGUF
from afina.models.formats.pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer_of
from afina.models.load import Base
from afina.serving.gguf import GgufFacts, plan_model, write_model

TEXTS = (
    "It's 12,345 o'clock!? I'LL  go\n\n\tnow ... über-naïve №7 ｆｏｏ\r\n /path/to x=y; 三体 🙂 ",
    "a", "", " a  b", "3.14159 AbCDef x'S\n \n",
)  # fmt: skip


def with_tokenizer(folder: Path, inner) -> Base:
    tiny_module().save_pretrained(folder)
    inner.save_pretrained(folder)
    return load_base(str(folder), precision="fp32", device="cpu")


def file_of(base: Base, path: Path, **facts) -> GGUF:
    write_model(base, base.model.module.state_dict().items(), path, "F16", GgufFacts("tiny", **facts))
    return GGUF(path)


def words_over_bytes(edit=None):
    """The byte tokenizer as a tokenizer.json, changed by `edit`, and some merges."""
    spec = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocabulary, merges = spec["model"]["vocab"], []
    letters = [text for text in vocabulary if len(text) == 1 and text.isascii()]
    for left, right in itertools.pairwise(letters):
        merges.append([left, right])
    free = list(vocabulary)[-len(merges) :]  # the vocabulary stays as large as the model
    for text, (left, right) in zip(free, merges, strict=True):
        vocabulary[left + right] = vocabulary.pop(text)
    spec["model"]["merges"] = merges
    if edit:
        edit(spec)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token="<|im_end|>", bos_token="<|endoftext|>"
    )


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_how_texts_are_parted_is_known_by_its_pattern(name: str, tmp_path: Path) -> None:
    parts = PRE_TOKENIZERS[name]

    def edit(spec) -> None:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = parts.build()
        spec["pre_tokenizer"] = json.loads(backend.to_str())["pre_tokenizer"]
        spec["model"]["ignore_merges"] = parts.whole_words

    base = with_tokenizer(tmp_path / "base", words_over_bytes(edit))
    file = file_of(base, tmp_path / "a.gguf")
    assert file.metadata["tokenizer.ggml.pre"] == name
    read = load_base(str(tmp_path / "a.gguf"), precision="fp32", device="cpu")
    for text in TEXTS:
        assert read.tokenizer.encode(text) == base.tokenizer.encode(text)
    assert read.tokenizer.stop_ids == base.tokenizer.stop_ids
    assert read.tokenizer.bos_id == base.tokenizer.bos_id
    assert read.tokenizer.template_hash() == base.tokenizer.template_hash()


def test_an_older_way_to_say_the_same_is_known() -> None:
    pattern = PRE_TOKENIZERS["qwen2"].steps[0]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    of_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    found = pre_tokenizer_of({"type": "Sequence", "pretokenizers": [split, of_bytes]}, False)
    assert found is PRE_TOKENIZERS["qwen2"]
    assert pre_tokenizer_of({"type": "Whitespace"}, False) is None
    assert pre_tokenizer_of(None, False) is None


def test_bos_and_the_run_s_template(tmp_path: Path) -> None:
    inner = words_over_bytes()
    inner.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    base = with_tokenizer(tmp_path / "base", inner)
    assert base.tokenizer.bos_id == 0
    template = "{% for m in messages %}Q{{ m['content'] }}<|im_end|>{% endfor %}"
    file = file_of(base, tmp_path / "a.gguf", template=template)
    assert file.metadata["tokenizer.ggml.add_bos_token"] is True
    assert file.metadata["tokenizer.ggml.add_eos_token"] is False
    assert file.metadata["tokenizer.chat_template"] == template
    read = load_base(str(tmp_path / "a.gguf"), precision="fp32", device="cpu")
    assert read.tokenizer.bos_id == 0


def test_another_end_of_turn_than_eos_is_named(tmp_path: Path) -> None:
    inner = byte_tokenizer(eos="<|endoftext|>")
    file = file_of(with_tokenizer(tmp_path / "base", inner), tmp_path / "a.gguf")
    assert file.metadata["tokenizer.ggml.eos_token_id"] == 0
    assert file.metadata["tokenizer.ggml.eot_token_id"] == 2


@pytest.mark.parametrize(("edit", "words"), [
    (lambda s: s.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}]}), "none of gpt-2"),
    (lambda s: s["pre_tokenizer"].update(add_prefix_space=True), "none of gpt-2"),
    (lambda s: s.update(normalizer={"type": "Lowercase"}), "normalises texts by .*Lowercase"),
    (lambda s: s["model"].update(ignore_merges=True), "none of gpt-2"),
    (lambda s: s["model"].update(end_of_word_suffix="</w>"), "not BPE over bytes"),
    (lambda s: s.update(pre_tokenizer=None), "BPE over characters, without bytes"),
])  # fmt: skip
def test_what_llama_cpp_cannot_do_is_refused(edit, words: str, tmp_path: Path) -> None:
    base = with_tokenizer(tmp_path / "base", words_over_bytes(edit))
    with pytest.raises(BaseModelError, match=words):
        file_of(base, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_a_tokenizer_of_likeliest_pieces_is_refused_with_the_way_out(tmp_path: Path) -> None:
    words = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{i:02X}>", -9.0) for i in range(256)), ("▁", -2.0)]
    inner = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(words, 0, byte_fallback=True)), unk_token="<unk>", eos_token="</s>"
    )
    base = with_tokenizer(tmp_path / "base", inner)
    with pytest.raises(BaseModelError, match="likeliest pieces") as error:
        plan_model(base, "F16")
    assert error.value.remedy.startswith("export the merged safetensors")


def test_what_is_read_otherwise_is_told(tmp_path: Path) -> None:
    def edit(spec) -> None:
        spec["normalizer"] = {"type": "NFC"}
        spec["added_tokens"][1]["rstrip"] = True

    base = with_tokenizer(tmp_path / "base", words_over_bytes(edit))
    plan = write_model(base, base.model.module.state_dict().items(), tmp_path / "a.gguf", "F16", GgufFacts("tiny"))
    assert "composed form" in plan.notes[0]
    assert "beside <|im_start|>" in plan.notes[1]


def of_characters(merges: list[str], prefix: bool = True, extra: tuple[str, ...] = ()):
    """As a tokenizer that was SentencePiece's."""
    letters = [*"▁abcdefgh"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made = dict.fromkeys(pair.replace(" ", "") for pair in merges)
    words = [*words[: 3 + 256 - len(letters) - len(made) - len(extra)], *letters, *made, *extra]
    vocabulary = {text: i for i, text in enumerate(words)}
    pairs = [tuple(pair.split(" ")) for pair in merges]
    backend = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken(text, special=True, normalized=False) for text in words[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


MERGES = ["a b", "▁ a", "▁ ab", "▁a b", "c d", "ab cd", "e f"]


def test_merges_become_scores(tmp_path: Path) -> None:
    base = with_tokenizer(tmp_path / "base", of_characters(MERGES))
    file = file_of(base, tmp_path / "a.gguf")
    said = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    score = dict(zip(said["tokens"], said["scores"], strict=True))
    assert said["model"] == "llama"
    assert said["add_space_prefix"] is True
    assert score["ab"] > score["▁a"] > score["▁ab"] > score["cd"] > score["abcd"] > score["ef"]
    kinds = dict(zip(said["tokens"], said["token_type"], strict=True))
    assert [kinds[text] for text in ("<unk>", "<s>", "<0x00>", "ab")] == [2, 3, 6, 1]
    without = with_tokenizer(tmp_path / "other", of_characters(MERGES, prefix=False))
    assert file_of(without, tmp_path / "b.gguf").metadata["tokenizer.ggml.add_space_prefix"] is False


@pytest.mark.parametrize(("merges", "extra", "words"), [
    ([*MERGES, "a bcd"], ("bcd",), "'abcd' do not follow one another"),
    (MERGES, ("gh",), "'g' and 'h' make a word, but are not merged"),
    (["a b", "▁ ab"], ("▁a",), "make a word, but are not merged"),
])  # fmt: skip
def test_merges_that_are_no_scores_are_refused(merges, extra, words: str, tmp_path: Path) -> None:
    base = with_tokenizer(tmp_path / "base", of_characters(merges, extra=extra))
    with pytest.raises(BaseModelError, match=words):
        file_of(base, tmp_path / "a.gguf")


def test_patterns_are_patterns() -> None:
    for each in PRE_TOKENIZERS.values():
        for step in each.steps:
            Regex(step)
