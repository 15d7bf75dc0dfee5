"""Runs, adapters, caches and settings that an earlier version wrote are read, and mean the same."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import afina
from afina.core.config import build, merge, read_yaml
from afina.core.device import cache_folder
from afina.core.files import read_json, read_jsonl, write_json
from afina.data.store import Rows
from afina.lora import load_adapter
from afina.measure import outputs
from afina.measure.pages.summary import number
from afina.models import load_base
from afina.runs.history import show_run
from afina.settings import RunSettings


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    folder = tmp_path / "recorded"
    shutil.copytree(Path(__file__).parent / "recorded", folder)
    for file in folder.rglob("*"):
        if file.is_file() and b"@FOLDER@" in (content := file.read_bytes()):
            file.write_bytes(content.replace(b"@FOLDER@", str(folder).encode()))
    kernels = cache_folder(None) / "kernels"
    if kernels.is_dir():  # compiling them again would take longer than all else here
        shutil.copytree(kernels, folder / "cache" / "kernels")
    return folder


def test_a_finished_run_is_shown_and_its_settings_are_the_same(recorded: Path) -> None:
    config = read_yaml(recorded / "finished" / "config.yaml")
    settings = build(RunSettings, merge(config, {"out": recorded / "finished"}))
    dumped = settings.model_dump(mode="json")
    for name, value in config.items():
        for key, each in value.items() if isinstance(value, dict) else [(None, value)]:
            assert (dumped[name][key] if key else dumped[name]) == each, (name, key)
    shown = show_run(recorded / "finished")
    assert json.dumps(shown).count("accuracy")


def test_a_killed_run_is_resumed_to_the_adapter_it_would_have_had(recorded: Path) -> None:
    afina.resume(afina.ResumeSettings(run=recorded / "killed"))
    found, expected = (
        load_file(recorded / name / "adapter" / "adapter_model.safetensors") for name in ("killed", "finished")
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # other processors round otherwise
        assert torch.allclose(found[name], value, atol=1e-4), name
    losses = [
        [(row["step"], round(row["loss"], 4)) for row in read_jsonl(recorded / name / "metrics.jsonl") if "loss" in row]
        for name in ("killed", "finished")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["finished", "dora", "vera"])
def test_adapters_are_read(name: str, recorded: Path) -> None:
    base = load_base(str(recorded / "base"), precision="fp32", device="cpu")
    config = load_adapter(base.model.module, recorded / name / "adapter")
    assert config.variant == {"finished": "lora"}.get(name, name)
    stored = load_file(recorded / name / "adapter" / "adapter_model.safetensors")
    assert sum(value.numel() for value in stored.values()) >= sum(
        p.numel() for p in base.model.module.parameters() if p.requires_grad
    )


def test_prepared_rows_are_read(recorded: Path) -> None:
    rows = Rows(recorded / "cache" / "rows" / "prepared" / "train")
    assert len(rows) == 54
    assert rows[0].location.startswith(str(recorded / "colours.jsonl"))
    base = load_base(str(recorded / "base"), precision="fp32", device="cpu")
    assert "blue" in base.tokenizer.decode(rows[0].input_ids) or "red" in base.tokenizer.decode(rows[0].input_ids)


def test_what_a_base_answered_is_read(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_key", lambda *_: "base")
    monkeypatch.setattr(outputs, "outputs_of", lambda *_: pytest.fail("the base was asked again"))
    path = recorded / "cache" / "outcomes" / "base.json"
    kept = read_json(path)
    rows = outputs.EvaluationSet(kept["answers"], kept["nats"], "generation", 9, "rows")
    found = outputs.cached_outputs(None, rows, lambda _: None, "base", recorded / "cache")
    assert [answer.text for answer in found.answers] == [text for text, *_ in kept["answers"]]
    assert [list(pair) for pair in found.nats] == kept["nats"]
    assert math.isnan(found.seconds)  # of another day, which is not set against today's
    assert math.isnan(found.latency)
    assert number("latency", None) == "not timed"
    for changed in ({"answers": kept["answers"][1:]}, {"nats": None}, {"general": {"en": [1]}}, {"answers": [[1, 2]]}):
        write_json(path, kept | changed)
        with pytest.raises(pytest.fail.Exception, match="the base was asked again"):
            outputs.cached_outputs(None, rows, lambda _: None, "base", recorded / "cache")
