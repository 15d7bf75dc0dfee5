"""The catalogue: its schema, its sources, and the arithmetic of its numbers against transformers' own classes."""

import json

import pytest
import torch

from afina.models.sources.catalogue import TASKS, Entry, known_models, licences, select
from afina.ui.cli import main

_LAYERS = (
    "num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers",
)  # fmt: skip
_CITED = {"config", "parameters", "licence", "languages", "context_length"}


def counted(entry: Entry) -> int:
    """Parameters by transformers, from one layer and from two: the others are like them."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    maker = {"encoder": AutoModel, "seq2seq": AutoModelForSeq2SeqLM}.get(entry.kind, AutoModelForCausalLM)
    layers = next(entry.config[name] for name in _LAYERS if name in entry.config)

    def few(count: int) -> int:
        values = {**entry.config, **{name: count for name in _LAYERS if name in entry.config}}
        config = AutoConfig.for_model(**values)
        for name in ("layer_types", "no_rope_layers"):
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name)[:count])
        with torch.device("meta"):
            model = maker.from_config(config)
        return sum(p.numel() for p in model.parameters())

    one = few(1)
    # transformers' class of T5 ties the head whatever the configuration says.
    own_head = entry.kind == "seq2seq" and entry.config.get("tie_word_embeddings") is False
    head = entry.config["vocab_size"] * entry.config["d_model"] if own_head else 0
    return one + (layers - 1) * (few(2) - one) + head


def test_there_are_enough_of_all_sizes() -> None:
    sizes = sorted(entry.parameters for entry in known_models().values())
    assert len(sizes) >= 40
    assert sizes[0] < 2e8
    assert sizes[-1] > 6e10
    assert {"base", "instruct", "encoder", "seq2seq"} == {entry.kind for entry in known_models().values()}
    hub = [entry.hub_id for entry in known_models().values() if entry.hub_id]
    assert len(hub) == len(set(hub))


@pytest.mark.parametrize("entry", known_models().values(), ids=known_models())
def test_entry(entry: Entry) -> None:
    assert (entry.hub_id is None) != (entry.package is None)
    assert entry.licence in licences()
    cited = {fact for source in entry.sources for fact in source.facts}
    stated = {name for name in ("tokenizer", "gated", "template") if getattr(entry, name) is not None}
    needed = _CITED | (stated if entry.hub_id else set())
    assert needed <= cited, f"no source for {needed - cited}"
    addresses = [each.url for each in entry.sources] + [claim.source for claim in entry.strengths]
    assert all(address.startswith("https://") for address in addresses)
    assert all(len(language) == 2 for language in entry.languages)
    assert entry.languages
    assert counted(entry) == pytest.approx(entry.parameters, rel=0.02)


def test_what_is_selected() -> None:
    translate = select(known_models().values(), "translation", "pt", commercial=True)
    assert translate
    assert all("pt" in e.languages and e.commercial != "no" and e.kind != "encoder" for e in translate)
    praised = [bool(entry.praised("translation")) for entry in translate]
    assert praised == sorted(praised, reverse=True)
    assert any(e.kind == "encoder" for e in select(known_models().values(), "classification"))
    assert len(select(known_models().values())) == len(known_models())


def test_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["models", "list", "--kind", "translation", "--language", "pt", "--license", "commercial", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found
    assert all(entry["commercial"] != "no" for entry in found.values())
    assert main(["models", "list", "--license", "mit"]) == 0
    assert all("mit" in line for line in capsys.readouterr().out.splitlines()[1:])
    assert main(["models", "show", "llama-3.2-1b-instruct"]) == 0
    shown = capsys.readouterr().out
    for words in ("under conditions", "gated", "good at", "read at", "--base llama-3.2-1b-instruct"):
        assert words in shown
    assert main(["models", "list", "--kind", "translating"]) == 2
    assert "Did you mean 'translation'" in capsys.readouterr().err
    assert main(["models", "list", "--license", "GPL"]) == 2
    assert main(["models", "show", "starter", "--language", "pt"]) == 2
    assert set(TASKS) >= {claim.task for entry in known_models().values() for claim in entry.strengths}
