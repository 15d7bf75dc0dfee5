"""Classifiers and encoder-decoders: packed rows against transformers' own losses, and from a file to answers."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SPECIALS, byte_tokenizer, evaluate, merge_adapter, tiny_config
from conftest import generate as ask
from peft import PeftModel
from torch.nn import functional as F
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

import afina
from afina.core.errors import BaseModelError
from afina.data.batch import pack
from afina.data.load import load_data
from afina.data.settings import DataSettings
from afina.models import load_base
from afina.models.causal import TransformersModel
from afina.models.encoders import ClassifierModel, Seq2SeqModel
from afina.models.generation import generate
from afina.runs.facts import read_facts
from afina.runs.opening import open_run
from afina.training.settings import METHOD_NAMES

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ENCODERS = {
    "bert": tiny_config("bert"),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=130, **ENDS),
    "distilbert": DistilBertConfig(
        vocab_size=259,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=130,
    ),
    "modernbert": ModernBertConfig(**SIZES, max_position_embeddings=130, **ENDS),
}
DECODERS = {
    "t5": tiny_config("t5"),
    "bart": BartConfig(
        vocab_size=259, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=130,
        forced_eos_token_id=None, decoder_start_token_id=2,
        **{k: v for k, v in ENDS.items() if "cls" not in k and "sep" not in k},
    ),
}  # fmt: skip


def save(folder: Path, config) -> Path:
    from transformers import AutoModel

    torch.manual_seed(0)
    maker = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModel
    maker.from_config(config).save_pretrained(folder)
    tokenizer = byte_tokenizer(chat_template=None, eos="<|im_end|>")
    tokenizer.pad_token, tokenizer.cls_token, tokenizer.sep_token = SPECIALS
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{SPECIALS[1]} $A {SPECIALS[2]}", special_tokens=[(SPECIALS[1], 1), (SPECIALS[2], 2)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, count: int = 60) -> Path:
    rows = [
        {"q": f"{'a' if i % 2 else 'b'}{i:02d}" * (1 + i % 3), "a": "red" if i % 2 else "blue"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_for(base, path: Path):
    settings = DataSettings(path=path, prompt="{q}", completion="{a}")
    return load_data(settings, base).train[:7]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_classifier_learns_what_transformers_would(name: str, tmp_path: Path) -> None:
    base = load_base(
        str(save(tmp_path / name, ENCODERS[name])), precision="fp32", device="cpu", classes=("blue", "red")
    )
    assert isinstance(base.model, ClassifierModel)
    assert "classifier" in base.model.heads
    rows = rows_for(base, write(tmp_path / "rows.jsonl"))
    packed = pack(rows, torch.device("cpu"))
    expected = 0.0
    for row in rows:
        label = torch.tensor([next(x for x in row.labels if x != -100)])
        logits = base.model.module(input_ids=torch.tensor([row.input_ids])).logits
        expected += F.cross_entropy(logits, label).item()
    assert base.model.summed_loss(packed).item() == pytest.approx(expected, rel=1e-4)
    answers = generate(base, [row.input_ids for row in rows], 5)
    assert {answer.text for answer in answers} <= {"blue", "red"}


@pytest.mark.parametrize("name", DECODERS)
def test_an_encoder_decoder_learns_what_transformers_would(name: str, tmp_path: Path) -> None:
    base = load_base(str(save(tmp_path / name, DECODERS[name])), precision="fp32", device="cpu")
    assert isinstance(base.model, Seq2SeqModel)
    rows = rows_for(base, write(tmp_path / "rows.jsonl"))
    expected = 0.0
    for row in rows:
        source = [t for t, x in zip(row.input_ids, row.labels, strict=True) if x == -100]
        target = [x for x in row.labels if x != -100]
        found = base.model.module(input_ids=torch.tensor([source]), labels=torch.tensor([target]))
        expected += found.loss.item() * len(target)
    assert base.model.summed_loss(pack(rows, torch.device("cpu"))).item() == pytest.approx(expected, rel=1e-4)
    prompts = [[t for t, x in zip(row.input_ids, row.labels, strict=True) if x == -100] for row in rows]
    together = generate(base, prompts, 6)
    assert together == [generate(base, [prompt], 6)[0] for prompt in prompts]


@pytest.mark.parametrize("method", ["lora", "head", "full", "last", "bias"])
def test_from_a_file_to_a_classifier(method: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "bert", ENCODERS["bert"])
    settings = {
        "base": str(folder), "out": tmp_path / "run", "method": method, "precision": "fp32", "device": "cpu",
        "data": {"path": write(tmp_path / "rows.jsonl"), "prompt": "{q}", "completion": "{a}"},
        "train": {"epochs": 8, "learning_rate": 0.005 if method in ("lora", "full", "last") else 0.02},
    }  # fmt: skip
    result = afina.train(afina.RunSettings(**settings))
    assert result.evaluation.adapted["accuracy"] == 1.0 or method in ("head", "bias")
    found = ask(result.folder, ["a07", "b06"])
    assert {row["answer"] for row in found} <= {"red", "blue"}
    named = METHOD_NAMES[method]
    assert f"to rows.jsonl with {named}: " in result.report.read_text()
    card = (result.adapter / "README.md").read_text()
    assert f"with {named}" in card
    assert ("library_name: peft" in card) == (method == "lora")
    if method == "lora":
        assert [row["answer"] for row in found] == ["red", "blue"]
        theirs = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2), result.adapter
        ).eval()
        ours = open_run(result.folder).base
        ids = torch.tensor([ours.tokenizer.encode_input("a07")])
        with torch.no_grad():
            assert torch.allclose(ours.model.module(ids).logits, theirs(ids).logits, atol=1e-5)
        assert merge_adapter(result.folder, tmp_path / "merged") < 1e-5
        assert Path(read_facts(tmp_path / "merged")["load"]["name"]).samefile(folder)
        assert [row["answer"] for row in ask(tmp_path / "merged", ["a07", "b06"])] == ["red", "blue"]
        with (tmp_path / "rows.jsonl").open("a") as file:  # a class of which the model has never heard
            file.write(json.dumps({"q": "a01", "a": "green"}) + "\n")
        again = evaluate(result.folder, tmp_path / "rows.jsonl")
        assert again.adapted["accuracy"] == (again.rows - 1) / again.rows
        assert "perplexity" not in again.adapted
        assert again.predictions[-1]["references"] == ["green"]


def test_from_a_file_to_an_encoder_decoder(tmp_path: Path) -> None:
    folder = save(tmp_path / "t5", DECODERS["t5"])
    settings = {
        "base": str(folder), "out": tmp_path / "run", "task": "seq2seq", "precision": "fp32", "device": "cpu",
        "data": {"path": write(tmp_path / "rows.jsonl"), "prompt": "{q}", "completion": "{a}"},
        "train": {"epochs": 12, "learning_rate": 0.02},
    }  # fmt: skip
    result = afina.train(afina.RunSettings(**settings))
    assert result.evaluation.adapted["loss"] < 0.7 * result.evaluation.base["loss"]
    assert ask(result.folder, ["a07"])[0]["answer"]


def test_what_a_classifier_needs(tmp_path: Path) -> None:
    folder = save(tmp_path / "bert", ENCODERS["bert"])
    rows = [{"prompt": f"question {i}", "completion": f"a free answer, number {i}"} for i in range(30)]
    (tmp_path / "free.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = afina.RunSettings(
        base=str(folder), out=tmp_path / "run", data={"path": tmp_path / "free.jsonl"}, device="cpu"
    )
    with pytest.raises(BaseModelError, match=r"(?s)each in several rows; none were found.*Free answers"):
        afina.train(settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(BaseModelError, match="no encoder-decoder"):
        load_base(str(folder), precision="fp32", task="seq2seq")
    with pytest.raises(BaseModelError, match="two classes or more"):
        load_base(str(folder), precision="fp32")


def test_an_encoder_decoder_that_does_not_say_with_what_answers_begin(tmp_path: Path) -> None:
    folder = save(tmp_path / "t5", tiny_config("t5"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder_start_token_id": None}))
    with pytest.raises(BaseModelError, match="does not say with what an answer begins"):
        load_base(str(folder), precision="fp32")


@pytest.mark.parametrize("kind", ["opt", "mixtral"])
def test_a_family_without_a_decoder_of_ours_from_a_file_to_answers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig, OPTConfig

    sizes = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 2}
    config = (
        OPTConfig(
            **sizes, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=256, bos_token_id=2, pad_token_id=1
        )
        if kind == "opt"
        else MixtralConfig(
            **sizes, intermediate_size=32, num_key_value_heads=2, num_local_experts=4, max_position_embeddings=256
        )
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    base = load_base(str(tmp_path / "base"), precision="fp32", device="cpu")
    assert isinstance(base.model, TransformersModel)
    prompts = [base.tokenizer.encode(text) for text in ("hello", "a longer prompt", "x")]
    answers = generate(base, prompts, 8, batch_size=2)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        own = out[0, len(prompt) :].tolist()
        own = own[: own.index(2)] if 2 in own else own
        assert answer.text == base.tokenizer.decode(own).strip()
    settings = {
        "base": str(tmp_path / "base"), "out": tmp_path / "run", "precision": "fp32", "device": "cpu",
        "train": {"epochs": 1}, "quantize": "int8",
        "data": {"path": write(tmp_path / "rows.jsonl"), "prompt": "{q}", "completion": "{a}"},
    }  # fmt: skip
    result = afina.train(afina.RunSettings(**settings))
    assert result.verification.from_training < 1e-5
    assert merge_adapter(result.folder, tmp_path / "merged") < 0.2
    assert ask(tmp_path / "merged", ["a07"])[0]["prompt"] == "a07"


def test_a_tokenizers_hash_is_not_changed_by_its_use(tmp_path: Path) -> None:
    folder = save(tmp_path / "bert", ENCODERS["bert"])
    told = json.loads((folder / "tokenizer.json").read_text())
    told["truncation"] = {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    told["padding"] = {
        "strategy": {"Fixed": 128},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    (folder / "tokenizer.json").write_text(json.dumps(told))
    base = load_base(str(folder), precision="fp32", classes=("a", "b"))
    before = base.tokenizer.hash
    assert len(base.tokenizer.encode("x" * 300)) == 300
    base.tokenizer.encode_input("hello")
    assert base.tokenizer.hash == before
